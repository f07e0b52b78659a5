//! Commands to paste into a shell.

use super::{managed_identity::ManagedIdentity, object::AccountName};

/// A command whose arguments are quoted where necessary.
pub(super) struct Command(String);

impl Command {
    /// Starts a command with trusted words.
    pub(super) fn new(words: &str) -> Self {
        Self(words.to_owned())
    }

    pub(super) fn word(mut self, word: &str) -> Self {
        self.0.push(' ');
        self.0.push_str(&quoted(word));
        self
    }

    pub(super) fn arg(mut self, flag: &str, value: &str) -> Self {
        self.0.push(' ');
        self.0.push_str(flag);
        self.word(value)
    }

    /// Adds the flags that name an identity. Unknown values become placeholders in capitals.
    fn identity_flags(self, identity: &ManagedIdentity) -> Self {
        let id = identity.id.as_ref();
        let command = self
            .arg("--identity-name", id.map_or("IDENTITY_NAME", |id| &id.name))
            .arg("--resource-group", id.map_or("RESOURCE_GROUP", |id| &id.resource_group));
        match id {
            Some(id) => command.arg("--subscription", &id.subscription),
            None => command,
        }
    }
}

impl From<Command> for String {
    fn from(command: Command) -> Self {
        command.0
    }
}

/// Quotes a text as one word of a POSIX shell. Removes null characters, which no command can contain.
pub fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@%+=:,./_-".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\0', "").replace('\'', "'\\''"))
}

/// The federated credential that a service account needs.
pub(super) struct ExpectedCredential<'w> {
    pub(super) account: &'w AccountName,
    /// `None` if the issuer is not known.
    pub(super) issuer: Option<&'w str>,
    pub(super) audience: &'w str,
}

impl ExpectedCredential<'_> {
    fn arguments(&self, command: Command) -> String {
        let AccountName { namespace, name } = self.account;
        command
            .arg("--issuer", self.issuer.unwrap_or("ISSUER"))
            .arg("--subject", &format!("{}{namespace}:{name}", super::difference::SUBJECT_PREFIX))
            .arg("--audiences", self.audience)
            .into()
    }

    pub(super) fn create(&self, identity: &ManagedIdentity) -> String {
        let name = self.free_name(identity);
        let command = Command::new("az identity federated-credential create").arg("--name", &name);
        self.arguments(command.identity_flags(identity))
    }

    pub(super) fn update(&self, identity: &ManagedIdentity, credential: &str) -> String {
        let command = Command::new("az identity federated-credential update").arg("--name", credential);
        self.arguments(command.identity_flags(identity))
    }

    /// Returns a name that Azure accepts (`^[a-zA-Z0-9]{1}[a-zA-Z0-9-_]{2,119}$`) and that no other credential of the identity has.
    fn free_name(&self, identity: &ManagedIdentity) -> String {
        const MAX_LENGTH: usize = 116; // leaves 4 of 120 characters for a number such as "-20"
        let AccountName { namespace, name } = self.account;
        let letters = format!("{namespace}-{name}").chars().take(MAX_LENGTH).collect::<String>();
        let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let name: String =
            letters.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).chars().map(letter).collect();
        let name = if name.len() < 3 { format!("sa-{name}") } else { name };
        let is_taken = |name: &str| {
            identity.credentials.iter().flatten().any(|credential| credential.name.eq_ignore_ascii_case(name))
        };
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        std::iter::once(name.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(name)
    }
}

/// Returns the command that lists the credentials of an identity.
pub(super) fn list_credentials(identity: &ManagedIdentity) -> String {
    Command::new("az identity federated-credential list").identity_flags(identity).into()
}

/// Returns the command that finds an identity by its client ID, which is a GUID.
pub(super) fn find_identity(client_id: &str) -> String {
    Command::new("az identity list").arg("--query", &format!("[?clientId=='{client_id}'].id")).into()
}

/// Returns the command that deletes a credential.
pub(super) fn delete_credential(identity: &ManagedIdentity, credential: &str) -> String {
    Command::new("az identity federated-credential delete").arg("--name", credential).identity_flags(identity).into()
}

/// Returns the command that sets an annotation of a service account, or removes it if there is no value.
pub(super) fn annotate(account: &AccountName, key: &str, value: Option<&str>) -> String {
    let assignment = value.map_or_else(|| format!("{key}-"), |value| format!("{key}={value}"));
    let command = Command::new("kubectl annotate serviceaccount")
        .word(&account.name)
        .arg("--namespace", &account.namespace)
        .word(&assignment);
    if value.is_some() { command.0 + " --overwrite" } else { command.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed_by_shell(word: &str) -> Vec<u8> {
        let output = std::process::Command::new("sh").args(["-c", &format!("printf %s {word}")]).output().unwrap();
        assert!(output.status.success(), "{word}");
        output.stdout
    }

    #[test]
    fn shell_metacharacters_are_quoted() {
        for text in
            ["", "a b", "$(id)", "`id`", "';id;'", "\\", "a'b", "\"", "*", "~", "!x", "#", "a\nb\n", "--x=$y", "é"]
        {
            assert_eq!(String::from_utf8(printed_by_shell(&quoted(text))).unwrap(), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_word_is_quoted(text in any::<String>()) {
            let text = text.replace('\0', "");
            prop_assert_eq!(printed_by_shell(&quoted(&text)), text.as_bytes());
        }
    }
}
