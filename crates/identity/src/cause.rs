//! Causes of a difference between two texts that Entra compares byte for byte.

use std::fmt;

/// A cause of a difference between two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Spaces, line breaks or invisible characters.
    Whitespace,
    /// Quotes or angle brackets around the text.
    Quotes,
    /// Upper and lower case differ.
    Case,
    /// The text is empty.
    Empty,
    /// Letters that are not ASCII, which may look like ASCII letters.
    NotAscii,
    /// One or two letters differ.
    Typo,
    /// The issuer's slash at the end is missing.
    SlashMissing,
    /// The issuer has an extra slash at the end.
    SlashExtra,
    /// `https://` is missing.
    SchemeMissing,
    /// The issuer has another scheme, such as `http`.
    Scheme,
    /// The URL of a document below the issuer, such as the discovery document.
    Document,
    /// The AKS issuer of another region.
    Region,
    /// The AKS issuer in its older form, without region.
    OlderForm,
    /// The AKS issuer with another tenant in its path.
    Tenant,
    /// Tenant and cluster are swapped in the path.
    SwappedPath,
    /// The AKS issuer of another cluster, or of this cluster before it was recreated.
    Cluster,
    /// The issuer of identity bindings.
    BindingIssuer,
    /// The URL of the API server.
    ApiServer,
    /// Another host.
    Host,
    /// Another path.
    Path,
    /// Namespace and name are swapped.
    Swapped,
    /// Another separator than `:`.
    Separator,
    /// The prefix `system:serviceaccount:` is wrong or missing.
    Prefix,
    /// The subject names another namespace.
    Namespace,
    /// The subject names another service account.
    Name,
    /// A wildcard, which Entra does not expand.
    Wildcard,
    /// The audience of another cloud.
    Cloud,
    /// The audience of identity bindings.
    BindingAudience,
    /// More than one audience.
    Several,
    /// The texts have nothing in common.
    Other,
}

impl Cause {
    /// Returns whether both texts mean the same thing in a different spelling.
    pub(super) const fn is_spelling(self) -> bool {
        matches!(
            self,
            Self::Whitespace
                | Self::Quotes
                | Self::Case
                | Self::NotAscii
                | Self::Typo
                | Self::SlashMissing
                | Self::SlashExtra
                | Self::SchemeMissing
                | Self::Scheme
                | Self::Document
                | Self::SwappedPath
                | Self::Swapped
                | Self::Separator
                | Self::Prefix
                | Self::Wildcard
        )
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Whitespace => "white space or invisible characters",
            Self::Quotes => "quotes or brackets around the value",
            Self::Case => "upper and lower case differ",
            Self::Empty => "the value is empty",
            Self::NotAscii => "non-ASCII letters, which may look like ASCII letters",
            Self::Typo => "one or two letters differ",
            Self::SlashMissing => "the slash at the end is missing",
            Self::SlashExtra => "an extra slash at the end",
            Self::SchemeMissing => "https:// is missing",
            Self::Scheme => "another scheme than https",
            Self::Document => "the URL of a document below the issuer, not of the issuer",
            Self::Region => "another region in the host name",
            Self::OlderForm => "the other form of an AKS issuer, with or without region",
            Self::Tenant => "another tenant in the path",
            Self::SwappedPath => "tenant and cluster swapped in the path",
            Self::Cluster => "another cluster, or this cluster before it was recreated",
            Self::BindingIssuer => "the issuer of identity bindings, not the cluster's",
            Self::ApiServer => "the URL of the API server, not of the issuer",
            Self::Host => "another host",
            Self::Path => "another path",
            Self::Swapped => "namespace and name are swapped",
            Self::Separator => "\":\" must separate the parts",
            Self::Prefix => "the prefix must be \"system:serviceaccount:\"",
            Self::Namespace => "another namespace",
            Self::Name => "another service account",
            Self::Wildcard => "Entra does not expand wildcards",
            Self::Cloud => "the audience of another cloud",
            Self::BindingAudience => "the audience of identity bindings",
            Self::Several => "more than one audience",
            Self::Other => "a completely different value",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
