//! Who sent a request when there are proxies in between.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The right-most address that is not a trusted proxy: the client can make up anything to the left of it.
pub fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let peer = peer.to_canonical();
    if !is_trusted(&peer) {
        return peer;
    }
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let hops = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let mut nearest = peer;
    for hop in hops {
        let hop = str::from_utf8(hop).unwrap_or_default().trim();
        // Some proxies add the port, or brackets.
        let with_port = hop.parse().map(|at: SocketAddr| at.ip());
        let address = with_port.or_else(|_| hop.trim_matches(['[', ']']).parse());
        // Nothing beyond an entry that is not an address can be trusted.
        let Ok(address) = address else { break };
        nearest = address.to_canonical();
        if !is_trusted(&nearest) {
            break;
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn seen(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers
                .append("x-forwarded-for", HeaderValue::from_bytes(line.as_bytes()).expect("a header value"));
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().expect("a network")).collect();
        address(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn forged_entries_gain_nothing_behind_any_number_of_proxies() {
        let none: &[&str] = &[];
        let (one, two) = (["10.0.0.1/32"], ["10.0.0.1/32", "192.168.0.0/16"]);
        for forged in [
            "",
            "1.1.1.1, ",
            "10.0.0.1, ",
            "192.168.0.1, 10.0.0.1, ",
            "junk, ",
            "é, ",
            ", ",
            "9.9.9.9, 1.1.1.1, ",
        ] {
            // First the client connects directly; then its forged entries precede what the proxies saw.
            assert_eq!(seen("9.9.9.9", &[forged], none), "9.9.9.9", "{forged}");
            assert_eq!(seen("10.0.0.1", &[&format!("{forged}9.9.9.9")], &one), "9.9.9.9", "{forged}");
            let twice = format!("{forged}9.9.9.9, 192.168.0.1");
            assert_eq!(seen("10.0.0.1", &[&twice], &two), "9.9.9.9", "{forged}");
            assert_eq!(seen("10.0.0.1", &[&twice], &one), "192.168.0.1", "the second is not trusted");
            assert_eq!(seen("10.0.0.1", &[forged, "9.9.9.9", "192.168.0.1"], &two), "9.9.9.9", "{forged}");
        }
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        for (written, client) in [
            ("9.9.9.9:5000", "9.9.9.9"),
            ("[2001:db8::9]:5000", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("::ffff:9.9.9.9", "9.9.9.9"),
            ("9.9.9.9, unknown", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(seen("::ffff:10.0.0.1", &[written], &["10.0.0.0/8"]), client, "{written}");
        }
    }
}
