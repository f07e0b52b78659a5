//! Errors with their causes, for log lines.

use std::{error::Error, fmt};

/// An error with its causes on one line. `tracing_subscriber` writes only the first message into its JSON. A cause is
/// left out if the previous message contains it, because many libraries repeat the cause in the message.
pub(crate) struct Causes<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !last.contains(&message) {
                write!(f, ": {message}")?;
                last = message;
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Level(&'static str, #[source] Option<Box<Level>>);

    #[test]
    fn each_cause_appears_once() {
        let root = Level("no route", None);
        let repeated = Level("connect: no route", Some(Box::new(root)));
        let error = Level("cannot write", Some(Box::new(repeated)));
        assert_eq!(Causes(&error).to_string(), "cannot write: connect: no route");
    }
}
