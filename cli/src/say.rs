//! Output for the user. When the reader has gone away, as in `slipway status | head -1`, the run goes on and ends as
//! it would otherwise; `println!` would panic.

use std::fmt::Write as _;

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
    let text = harmless(&text.to_string());
    // If this fails, the exit code still tells how the run went.
    let _ = writeln!(to, "{text}");
}

/// `text` without what controls a terminal, which text from a file or another program must not be able to do.
fn harmless(text: &str) -> String {
    let commands = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    text.replace(commands, "\u{fffd}")
}

/// A diff for a terminal, with git's usual colours. git's own can't be told from those in the files, which may hide text.
pub fn coloured(diff: &str) -> String {
    let mut coloured = String::new();
    let mut in_head = true;
    // A CR at the end of a line does nothing there.
    for line in diff.lines() {
        in_head = line.starts_with("diff ") || in_head && !line.starts_with("@@");
        let colour = match line.as_bytes().first() {
            _ if in_head => "1",
            Some(b'+') => "32",
            Some(b'-') => "31",
            Some(b'@') => "36",
            _ => "",
        };
        let _ = writeln!(coloured, "\u{1b}[{colour}m{}\u{1b}[m", harmless(line));
    }
    coloured
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_read_somewhere_commands_no_terminal() {
        let mut said = Vec::new();
        super::line(&mut said, format_args!("a\u{1b}[2J\u{9b}1m\r\u{7}\u{7f}\tä\nb"));
        assert_eq!(String::from_utf8_lossy(&said), "a\u{fffd}[2J\u{fffd}1m\u{fffd}\u{fffd}\u{fffd}\tä\nb\n");
    }

    #[test]
    fn a_diff_has_no_colours_but_ours() {
        let diff = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@ fn x()\n-a\u{1b}[8m\r\n--- a\n+b\u{1b}]52;c;YQ==\u{7}\n c\td\r\re\n\
                    diff --git a/y b/y\n--- a/y\n";
        let line = |colour: &str, text: &str| format!("\u{1b}[{colour}m{text}\u{1b}[m\n");
        let head = |file: &str| {
            line("1", &format!("diff --git a/{file} b/{file}")) + &line("1", &format!("--- a/{file}"))
        };
        let wanted = [
            head("x"),
            line("1", "+++ b/x"),
            line("36", "@@ -1,3 +1,3 @@ fn x()"),
            line("31", "-a\u{fffd}[8m"),
            line("31", "--- a"),
            line("32", "+b\u{fffd}]52;c;YQ==\u{fffd}"),
            line("", " c\td\u{fffd}\u{fffd}e"),
            head("y"),
        ];
        assert_eq!(super::coloured(diff), wanted.concat());
    }
}
