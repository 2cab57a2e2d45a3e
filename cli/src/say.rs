//! What is said to whoever runs it. Where nobody reads it, as behind `slipway status | head -1`, the run goes on and
//! ends as it would otherwise; `println!` would panic there.

/// A line on the standard output.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::say::line(std::io::stdout(), format_args!($($text)*))
    };
}

/// A line on the standard error.
macro_rules! complain {
    ($($text:tt)*) => {
        $crate::say::line(std::io::stderr(), format_args!($($text)*))
    };
}

pub(crate) use {complain, say};

/// What the macros call.
pub fn line(mut to: impl std::io::Write, text: std::fmt::Arguments<'_>) {
    // The exit code tells how the run went, also where this can't.
    let _ = writeln!(to, "{text}");
}
