use super::*;
use shared::domain::{ConnectionSettings, ConnectionStatus};

#[test]
fn renders_connections() {
    let connection = |status, preview_mode: bool| ConnectionSummary {
        id: format!("{:032x}", 7).parse().expect("an id"),
        organization: "acme".parse().expect("an id"),
        agent: Some("helper".parse().expect("an id")),
        app: "A0123456".parse().expect("an id"),
        enterprise: None,
        team: (!preview_mode).then(|| "T0123456".parse().expect("an id")),
        preview_mode,
        status,
        reason: if status == ConnectionStatus::Error { "invalid_auth" } else { "" }.into(),
        bot_user: Some("U0123456".into()),
        scopes: Vec::new(),
        installed_by: None,
        has_bot_token: true,
        settings: ConnectionSettings::default(),
        bindings: 4,
        backlog: None,
        sending_paused_at: None,
        installed_at: Some("2026-01-31T12:00:00Z".into()),
        updated_at: None,
        version: 9,
    };
    let failed = connection(ConnectionStatus::Error, false);
    let history = [HistoryEntry {
        at: Some("2026-01-31T12:00:00Z".into()),
        status: ConnectionStatus::Error,
        reason: "invalid_auth".into(),
    }];
    let changes = [BindingChange {
        at: Some("2026-01-31T12:00:00Z".into()),
        channel: "C1".into(),
        org: Some("acme".into()),
        agent: Some("helper".into()),
        by: "U1".into(),
    }];
    insta::assert_snapshot!(render(&failed, &history, &changes), @r"
    id              00000000000000000000000000000007
    organization    acme
    agent           helper
    app             A0123456
    installation    T0123456
    status          error
    reason          invalid_auth
    bot user        U0123456
    installed by    -
    scopes          -
    bot token       set
    surfaces        dm,channel
    welcome         true
    answer bots     false
    broadcasts      false
    foreign apps    false
    link by         anyone
    bindings        4
    backlog         -
    sending paused  -
    installed at    2026-01-31T12:00:00Z
    version         9
    webhooks        <base>/api/v1/webhooks/00000000000000000000000000000007
    history         2026-01-31T12:00:00Z error: invalid_auth
    binding         2026-01-31T12:00:00Z C1 linked to acme/helper by U1
    ");
    let connections = [failed, connection(ConnectionStatus::Active, true)];
    insta::assert_snapshot!(output::render_table(&COLUMNS, &connections, row), @r"
    id                                organization  app       installation  status  bindings  backlog  reason
    00000000000000000000000000000007  acme          A0123456  T0123456      error          4  -        invalid_auth
    00000000000000000000000000000007  acme          A0123456  preview       active         4  -        -
    ");
}
