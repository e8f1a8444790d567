//! Tests of Tidegate's commands, in both forms.

use super::{setup::*, *};
use shared::store::ConversationChange;

const NEW_SESSION: &str =
    "change begin a new session: A new session starts here. / A new session starts here.";
const UNBIND: &str = "change unbind a conversation: Unlinked. The agent no longer answers here. \
    + chat.postMessage <@U0001USER> unlinked this channel from its agent. \
    / This conversation isn't linked.";
const BINDER_ONLY: &str = "Only <@U0002> and administrators of this app can change the link here.";
const ADMINS_ONLY: &str = "Only administrators of this app can change links.";

#[test]
fn answers_slash_command_privately() {
    let invalid = "This code is invalid or expired. Ask for a new one; \
        after several wrong codes, wait 15 minutes.";
    let consume = "consume in channel T0001TEAM/C0001CHAN by U0001USER";
    let bind = |org, id| {
        format!(
            "change bind a conversation to {org}/{id}: \
             Linked. *{id}* answers here now. \
             + chat.postMessage <@U0001USER> linked this channel to the agent *{id}*. \
             / This agent can't be linked here."
        )
    };
    let preview_only = "This command is for preview apps. Use `/lobu link <code>` here.";
    let several = "Several agents have this name. \
        Use `/lobu link acme/sales` or `/lobu link other/sales`.";
    let menu = "`/lobu try sales` for *sales*";
    let odd_menu = "`/lobu try sales` for *&lt;A&amp;B&gt;*";
    let bind_odd = bind("acme", "sales").replace("*sales*", "*&lt;A&amp;B&gt;*");
    let app = "The app that answers here keeps its own history. This command can't clear it.";
    let linked = "*Support* answers here, linked by <@U0002>. Session 5.";
    let rows: &[(&str, &[Tweak], &str)] = &[
        ("nonsense", &[], "Unknown command. Use `/lobu help`."),
        ("status", &[], BY_DEFAULT),
        ("status", &[own_handler], BY_DEFAULT),
        ("/STATUS", &[bound, session_5], linked),
        ("status", &[no_agent], UNLINKED),
        ("unlink", &[], UNBIND),
        ("link", &[], "Use `/lobu link <code>` with the code you were given."),
        ("link 7K3M-Q2XW-9FHA", &[], consume),
        ("`link 7K3M-Q2XW-9FHA`", &[], consume),
        ("*link* 7K3M \u{2013} Q2XW \u{2013} 9FHA", &[], consume),
        ("\u{201c}link\u{201d}: &lt;7K3M-Q2XW-9FHA&gt;, please", &[], consume),
        ("link 7K3M-Q2XW-9FHA", &[bound, by_binder], BINDER_ONLY),
        ("unlink", &[bound, by_binder], BINDER_ONLY),
        ("unlink", &[bound, by_binder, admin], UNBIND),
        ("unlink", &[by_binder], UNBIND),
        ("unlink", &[by_admins], ADMINS_ONLY),
        ("link 7K3M-Q2XW-9FHA", &[by_admins], ADMINS_ONLY),
        ("link 7K3M-Q2XW-9FHA", &[by_admins, admin], consume),
        ("try sales", &[agents_acme, preview, by_admins], ADMINS_ONLY),
        ("status", &[named_oddly], "*&lt;A&amp;B&gt;* answers here by default. Session 1."),
        ("link \u{201c}7k3m-q2xw-9fha\u{201d}", &[], consume),
        ("link sales", &[], invalid),
        ("link sales", &[agents_acme], &bind("acme", "sales")),
        ("link sales", &[agents_both], &bind("acme", "sales")),
        ("link other/sales", &[agents_both], invalid),
        ("link sales", &[agents_both, preview], several),
        ("link other/sales", &[agents_both, preview], &bind("other", "sales")),
        ("agents", &[agents_acme], preview_only),
        ("try sales", &[agents_acme], preview_only),
        ("agents", &[agents_all, preview], menu),
        ("agents", &[preview], "No agents are available to try."),
        ("try sales", &[agents_acme, preview], &bind("acme", "sales")),
        ("agents", &[agents_odd, preview], odd_menu),
        ("try sales", &[agents_odd, preview], &bind_odd),
        ("try", &[agents_all, preview], menu),
        ("try support", &[agents_all, preview], menu),
        ("new", &[], NEW_SESSION),
        ("new", &[no_agent], UNLINKED),
        ("clear", &[session_5], "delivery: to acme/support s5 interactive"),
        ("clear", &[no_agent], UNLINKED),
        ("clear", &[forward], app),
    ];
    for (text, tweaks, expected) in rows {
        let shown = show(&decide_in(&slash("/lobu", text), tweaks));
        assert_eq!(
            shown.replace("command: ", "").replace("response_url ", ""),
            *expected,
            "{text}"
        );
    }
}

#[test]
fn handles_slash_command_without_app() {
    let nameless = "dead letter: a command without team, channel or user: \
        a user id must be 1 to 64 letters, digits, '_' or '-'";
    check(&[
        (slash("/weather", "status"), &[], &format!("command: response_url {BY_DEFAULT}")),
        (form(&[("command", "/lobu"), ("channel_id", "C1")]), &[], nameless),
        (slash("/weather", "status"), &[forward], TO_APP_FIRST),
        (slash("/weather", "status"), &[own_handler], TO_WORKER),
    ]);
}

#[test]
fn answers_text_commands_in_place() {
    let clear = "delivery: to acme/support s1 interactive; trigger";
    let consume = "consume in dm T0001TEAM/D1 by U0001USER";
    let guest = |text| message_with(json!({ "text": text, "user_team": "T9" }));
    let members_only = "command: chat.postEphemeral \
        Only members of this workspace can use commands of this app.; trigger";
    let colleague = message_with(json!({ "text": "/lobu new", "user_team": "E1" }));
    let dm = |text: &str| format!("command: chat.postMessage {text}; trigger");
    let (unbind, new) = (
        UNBIND.replace(": ", ": chat.postEphemeral "),
        NEW_SESSION.replace(": ", ": chat.postEphemeral "),
    );
    let (unbind, new) =
        (unbind.replace("/ ", "/ chat.postEphemeral "), new.replace("/ ", "/ chat.postEphemeral "));
    check(&[
        (im("/lobu status"), &[], &dm(BY_DEFAULT)),
        (im("/lobu status"), &[forward], &dm(BY_DEFAULT)),
        (im("/lobu status"), &[own_handler], TO_HANDLER),
        (channel("/lobu status"), &[], &dm(BY_DEFAULT).replace("Message", "Ephemeral")),
        (mention("<@U0BOT> lobu unlink"), &[], &format!("command: {unbind}; trigger")),
        (im("lobu clear"), &[], clear),
        (im("7K3M-Q2XW-9FHA"), &[preview, no_agent], &format!("command: {consume}; trigger")),
        (im("7K3M-Q2XW-9FHA"), &[], TO_AGENT),
        // A guest of a shared channel gives no commands, and the agent gets no code.
        (guest("/lobu link 7K3M-Q2XW-9FHA"), &[], members_only),
        (guest("lobu link 7K3M-Q2XW-9FHA"), &[], members_only),
        (guest("hi"), &[], TO_AGENT),
        (colleague, &[organization], &format!("command: {new}; trigger")),
    ]);
}

#[test]
fn refuses_codes_where_app_is_absent() {
    let consume = "command: consume in channel T0001TEAM/C0001CHAN by U0001USER";
    let refused = "command: response_url This app isn't known to be in this conversation, \
        so nothing was linked. Add the app here or write it a message, \
        then use the command again.";
    for name in ["directmessage", "privategroup", "mpdm-steve--ada-1"] {
        let link = || slash_in(name, "/lobu", "link 7K3M-Q2XW-9FHA");
        check(&[
            (link(), &[], refused),
            (link(), &[channel_known], consume),
            (link(), &[bound], consume),
        ]);
    }
    check(&[
        (slash_in("general", "/lobu", "link 7K3M-Q2XW-9FHA"), &[], consume),
        (slash_in("directmessage", "/lobu", "try sales"), &[preview, agents_acme], refused),
    ]);
}

#[test]
fn finds_channels_of_bot() {
    let new = |body: &Body, tweaks: &[Tweak]| {
        let facts = setup(tweaks).facts;
        with_webhook(body, |webhook| new_channel(webhook, &facts))
    };
    let of_person = json!({
        "type": "event_callback", "authorizations": [{ "team_id": "T1", "is_bot": false }],
        "event": { "type": "message", "channel": "D1", "channel_type": "im", "ts": "1.1" },
    });
    assert_eq!(new(&im("hi"), &[]).as_deref(), Some("D1"));
    assert_eq!(new(&mention("hi"), &[]).as_deref(), Some("C1"));
    assert_eq!(new(&im("hi"), &[channel_known]), None);
    assert_eq!(new(&channel("hi"), &[]), None, "public");
    assert_eq!(new(&json_body(&of_person.to_string()), &[]), None, "a person's own message");
}

#[test]
fn lists_usable_commands_in_help() {
    let help = show(&decide_in(&slash("/lobu", ""), &[]));
    assert_eq!(help.lines().count(), 6, "{help}");
    assert!(help.starts_with("command: response_url `/lobu help` lists the commands."), "{help}");
    let preview = show(&decide_in(&slash("/lobu", "HELP"), &[preview, nowhere]));
    assert!(preview.contains("`/lobu try <agent>` links this conversation to one of them."));
}

#[test]
fn queries_agents_only_if_needed() {
    let (team, user, agent) = (id("T0001TEAM"), id("U0001USER"), id("sales"));
    let linkable = NamedAgentQuery::Linkable { team, user, agent };
    let acme = NamedAgentQuery::OfOrganization(id("acme"));
    let rows: &[(Body, &[Tweak], &NamedAgentQuery)] = &[
        (slash("/lobu", "link sales"), &[], &linkable),
        (slash("/lobu", "link acme/sales"), &[], &linkable),
        (im("lobu link sales"), &[], &linkable),
        (slash("/lobu", "agents"), &[preview], &acme),
        (slash("/lobu", "try sales"), &[preview], &acme),
        (slash("/lobu", "agents"), &[], &NamedAgentQuery::None),
        (slash("/lobu", "link"), &[], &NamedAgentQuery::None),
        (slash("/lobu", "link \u{e9}"), &[], &NamedAgentQuery::None),
        (slash("/lobu", "link sales"), &[dm_only], &NamedAgentQuery::None),
        (slash("/lobu", "link sales"), &[processed], &NamedAgentQuery::None),
        (slash("/lobu", "link sales"), &[stopped], &NamedAgentQuery::None),
        (im("lobu link sales"), &[trigger_processed], &NamedAgentQuery::None),
        (im("hi"), &[], &NamedAgentQuery::None),
        (fixture("view_submission"), &[], &NamedAgentQuery::None),
    ];
    for (body, tweaks, need) in rows {
        let setup = setup(tweaks);
        let found =
            with_webhook(body, |webhook| named_agent_query(webhook, &setup.facts, &setup.options));
        assert_eq!(found, **need, "{body:?}");
    }
}

#[test]
fn recognizes_clear_command() {
    let facts = setup(&[]).facts;
    let ConnectionState::Known(connection) = &facts.connection else { panic!("not known") };
    for (body, is_clear) in [
        (slash("/lobu", "clear"), true),
        (slash("/weather", " Clear now"), true),
        (slash("/lobu", "new"), false),
        (im("lobu clear"), true),
        (mention("<@U0BOT> /lobu clear"), true),
        (message_with(json!({ "text": "/lobu clear", "user_team": "T9" })), false),
        (im("clear"), false),
        (fixture("view_submission"), false),
    ] {
        let found = with_webhook(&body, |webhook| clear_command(webhook, connection, "/lobu"));
        assert_eq!(found.is_some(), is_clear, "{body:?}");
        let Some(clear) = found else { continue };
        assert_eq!(clear.user.as_str(), "U0001USER");
        let failed = clear.clear_failure();
        assert!(
            failed.message["text"].as_str().is_some_and(|t| t.contains("this session continues"))
        );
        let change = clear.clear_change();
        let text = (change.reply)(true).remove(0).message["text"].clone();
        assert_eq!(
            text,
            "The agent was asked to forget this conversation. A new session starts here."
        );
        assert!(matches!(change.action, ConversationChange::NewSession { .. }));
    }
}
