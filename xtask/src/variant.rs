//! The toggles and the sixteen variants that they make up.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// The toggles in the order in which a variant's name lists them.
pub const TOGGLES: [&str; 4] = ["postgres", "redis", "rate_limit", "otlp"];

/// One combination of toggles: bit `n` is set when `TOGGLES[n]` is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant(u8);

impl Variant {
    /// Every toggle on.
    pub const FULL: Self = Self((1 << TOGGLES.len()) - 1);
    /// Every toggle off.
    pub const BASE: Self = Self(0);
    /// Every toggle on but `redis`, the second.
    pub const FULL_BUT_REDIS: Self = Self(Self::FULL.0 & !0b10);

    /// Whether it is the base variant or the full one.
    #[must_use]
    pub fn is_extreme(self) -> bool {
        [Self::BASE, Self::FULL].contains(&self)
    }

    /// All variants, `base` first and the full one last.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=Self::FULL.0).map(Self)
    }

    /// Whether `toggle` is on.
    ///
    /// # Panics
    /// When `toggle` isn't one of [`TOGGLES`].
    #[must_use]
    pub fn has(self, toggle: &str) -> bool {
        let bit = TOGGLES.iter().position(|known| *known == toggle).expect("a known toggle");
        self.0 & (1 << bit) != 0
    }

    /// The letter that stands for it in the template of `Cargo.lock`; `hooks/check.rhai` computes the same one.
    ///
    /// # Panics
    /// With more than six toggles: then both need a larger alphabet.
    #[must_use]
    pub fn letter(self) -> char {
        let alphabet = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['-', '_']);
        alphabet.into_iter().nth(self.0.into()).expect("at most 64 variants")
    }

    /// The toggles that are on, in the order of [`TOGGLES`].
    pub fn toggles(self) -> impl Iterator<Item = &'static str> {
        TOGGLES.into_iter().filter(move |toggle| self.has(toggle))
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::BASE {
            return f.write_str("base");
        }
        f.write_str(&self.toggles().collect::<Vec<_>>().join("+"))
    }
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::all().find(|variant| variant.to_string() == text) {
            Some(variant) => Ok(variant),
            None => bail!(
                "no variant is named `{text}`: write `base`, or toggles of {} in this order, joined by `+`",
                TOGGLES.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Variant;

    #[test]
    fn what_has_all_but_redis_is_named_so() {
        assert_eq!(Variant::FULL_BUT_REDIS.to_string(), "postgres+rate_limit+otlp");
    }
}
