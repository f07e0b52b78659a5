//! Enumerations whose values are words that users write.

/// Declares an enumeration. `$word` is its spelling in the configuration file, in annotations and in output.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ } default $default:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ::serde::Serialize, ::schemars::JsonSchema)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        }

        impl $name {
            /// All values, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// All spellings, in the same order.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// Returns the spelling in the file, in annotations and in output.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Returns the value with this spelling.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        // Not derived: the derived error for a list or a map does not name the expected words.
        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = <String as ::serde::Deserialize>::deserialize(deserializer)
                    .map_err(|_| ::serde::de::Error::custom(format_args!("expected {}", $crate::suggestions::one_of(Self::WORDS))))?;
                $crate::suggestions::read_word(&word, Self::from_word, Self::WORDS).map_err(::serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use words;
