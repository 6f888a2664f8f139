//! A law that was broken.

/// Which one, and what shows it.
#[derive(Clone, Debug)]
pub struct Broken {
    pub law: &'static str,
    pub how: String,
}

/// What a check comes to.
pub type Kept = Result<(), Broken>;

/// Ends a check where a condition does not hold.
macro_rules! law {
    ($holds:expr, $law:expr, $($how:tt)+) => {
        if !$holds {
            return Err($crate::law::Broken { law: $law, how: format!($($how)+) });
        }
    };
}
pub(crate) use law;
