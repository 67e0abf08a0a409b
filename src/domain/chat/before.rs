//! "Before" webhooks: Chat asks the app whether a user may do something, and the response decides.

/// The documented ones (vendor page "Webhook Command List", 1047/34355).
const NAMES: [&str; 7] = [
    "C2C.CallbackBeforeSendMsg",
    "Group.CallbackBeforeSendMsg",
    "Group.CallbackBeforeCreateGroup",
    "Group.CallbackBeforeApplyJoinGroup",
    "Group.CallbackBeforeInviteJoinGroup",
    "Sns.CallbackPrevFriendAdd",
    "Sns.CallbackPrevFriendResponse",
];

/// A "before" webhook, by its position: one of the documented ones, or any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BeforeWebhook(usize);

impl BeforeWebhook {
    /// Returns which "before" webhook a command is; `None` if it is another webhook. Chat names all of them
    /// `CallbackBefore...` or `CallbackPrev...`.
    pub(crate) fn of(command: &str) -> Option<Self> {
        if let Some(known) = NAMES.iter().position(|name| *name == command) {
            return Some(Self(known));
        }
        let (_, event) = command.split_once('.')?;
        let is_before = event.starts_with("CallbackBefore") || event.starts_with("CallbackPrev");
        is_before.then_some(Self(NAMES.len()))
    }

    /// Returns its command; `other` if it is not a documented one.
    pub(crate) fn name(self) -> &'static str {
        NAMES.get(self.0).copied().unwrap_or("other")
    }

    /// Returns a bit of its own among the lowest eight.
    pub(crate) fn bit(self) -> u32 {
        1 << self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_webhooks_have_a_name_and_a_bit_each() {
        let mut bits = 0;
        for name in NAMES {
            let webhook = BeforeWebhook::of(name).expect(name);
            assert_eq!((webhook.name(), bits & webhook.bit()), (name, 0));
            bits |= webhook.bit();
        }
        for name in ["Topic.CallbackBeforeX", "X.CallbackPrevY"] {
            let other = BeforeWebhook::of(name).expect(name);
            assert_eq!((other.name(), bits | other.bit()), ("other", 0xff));
        }
        for name in
            ["", "CallbackBefore", "Follow.CallbackAfterFollowAdd", "Sns.CallbackFriendAdd", "State.StateChange"]
        {
            assert_eq!(BeforeWebhook::of(name), None, "{name}");
        }
    }
}
