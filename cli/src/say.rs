//! Output for the user. When the reader has gone away, as in `slipway status | head -1`, the run goes on and ends as
//! it would otherwise; `println!` would panic.

/// Prints a line to standard output.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::say::line(std::io::stdout(), format_args!($($text)*))
    };
}

/// Prints a line to standard error.
macro_rules! complain {
    ($($text:tt)*) => {
        $crate::say::line(std::io::stderr(), format_args!($($text)*))
    };
}

pub(crate) use {complain, say};

/// What the macros call.
pub fn line(mut to: impl std::io::Write, text: std::fmt::Arguments<'_>) {
    // Text that comes from a file or another program must not be able to control the terminal.
    let commands = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    let text = text.to_string().replace(commands, "\u{fffd}");
    // If this fails, the exit code still tells how the run went.
    let _ = writeln!(to, "{text}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_read_somewhere_commands_no_terminal() {
        let mut said = Vec::new();
        super::line(&mut said, format_args!("a\u{1b}[2J\u{9b}1m\r\u{7}\u{7f}\tä\nb"));
        assert_eq!(String::from_utf8_lossy(&said), "a\u{fffd}[2J\u{fffd}1m\u{fffd}\u{fffd}\u{fffd}\tä\nb\n");
    }
}
