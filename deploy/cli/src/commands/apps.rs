//! `tidegate apps`: lists and shows the apps that `tidegate apply` declares.

use crate::{output, settings::StoreSettings};
use shared::{
    domain::{AppId, OrgId},
    store::{AppSummary, MAX_APPS},
};

const LIST: &str = "tidegate apps list";

const COLUMNS: [output::Column; 6] = [
    ("id", false),
    ("name", false),
    ("organization", false),
    ("connections", true),
    ("rotating", false),
    ("redirect", false),
];

/// Commands of `tidegate apps`.
#[derive(Debug, clap::Subcommand)]
pub enum Apps {
    /// List apps.
    List(List),
    /// Show an app, without its secrets.
    Show(Show),
}

/// Arguments of `tidegate apps list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Print JSON, one app per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate apps show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// App id.
    app: AppId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl Apps {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Apps::List(list) => {
                let apps = list.store.open()?.app_summaries(None, None, MAX_APPS as i64).await?;
                if apps.is_empty() {
                    return output::not_found("no apps found; declare them with tidegate apply");
                }
                output::print_list(&apps, list.json, &COLUMNS, row)
            }
            Apps::Show(show) => show.run().await,
        }
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let apps = self.store.open()?.app_summaries(None, None, MAX_APPS as i64).await?;
        let Some(app) = apps.into_iter().find(|app| app.id == self.app) else {
            return output::not_found(format!("app {} not found; list them with {LIST}", self.app));
        };
        if self.json {
            return output::print_json(&app);
        }
        Ok(output::print_line(&render(&app))?)
    }
}

fn row(app: &AppSummary) -> Vec<String> {
    vec![
        app.id.to_string(),
        output::or_dash(Some(&app.name)),
        organization(app),
        app.connections.to_string(),
        rotating(app),
        output::sanitize(&app.redirect_url),
    ]
}

fn organization(app: &AppSummary) -> String {
    app.organization.as_ref().map_or_else(|| "all".into(), OrgId::to_string)
}

/// Returns the kinds of secrets whose previous value is still valid, or a dash.
fn rotating(app: &AppSummary) -> String {
    let secrets = [
        ("client", &app.client_secret_previous_until),
        ("signing", &app.signing_secret_previous_until),
    ];
    let rotating = secrets.iter().filter(|(_, until)| until.is_some()).map(|(name, _)| *name);
    output::or_dash(Some(&rotating.collect::<Vec<_>>().join(",")))
}

fn render(app: &AppSummary) -> String {
    let list = |items: &[String]| output::or_dash(Some(&items.join(" ")));
    output::render_facts(&[
        ("id", app.id.to_string()),
        ("name", output::or_dash(Some(&app.name))),
        ("organization", organization(app)),
        ("client id", output::sanitize(&app.client_id)),
        ("scopes", list(&app.scopes)),
        ("optional", list(&app.optional_scopes)),
        ("redirect", output::sanitize(&app.redirect_url)),
        ("return urls", list(&app.return_urls)),
        ("agent", output::or_dash(app.agent.as_ref().map(|agent| agent.as_str()))),
        ("contact", output::or_dash(Some(&app.contact))),
        ("connections", app.connections.to_string()),
        ("old client", output::or_dash(app.client_secret_previous_until.as_deref())),
        ("old signing", output::or_dash(app.signing_secret_previous_until.as_deref())),
        ("updated at", output::sanitize(&app.updated_at)),
        ("webhooks", "<base>/slack/events".into()),
        ("install", "POST /v1/organizations/<organization>/install-links".into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppSummary {
        serde_json::from_value(serde_json::json!({
            "id": "A0123456", "name": "Helper", "organization": null, "client_id": "123.456",
            "scopes": ["app_mentions:read", "chat:write"], "optional_scopes": [],
            "redirect_url": "https://control.example/slack/oauth/callback",
            "return_urls": ["https://app.example/"], "agent": "helper", "contact": "",
            "connections": 3, "client_secret_previous_until": "2026-02-01T12:00:00+00:00",
            "signing_secret_previous_until": null, "created_at": "2026-01-31T12:00:00+00:00",
            "updated_at": "2026-01-31T12:00:00+00:00",
        }))
        .expect("an app")
    }

    #[test]
    fn renders_apps() {
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[app()], row), @r"
        id        name    organization  connections  rotating  redirect
        A0123456  Helper  all                     3  client    https://control.example/slack/oauth/callback
        ");
    }

    #[test]
    fn renders_app() {
        insta::assert_snapshot!(render(&app()), @r"
        id              A0123456
        name            Helper
        organization    all
        client id       123.456
        scopes          app_mentions:read chat:write
        optional        -
        redirect        https://control.example/slack/oauth/callback
        return urls     https://app.example/
        agent           helper
        contact         -
        connections     3
        old client      2026-02-01T12:00:00+00:00
        old signing     -
        updated at      2026-01-31T12:00:00+00:00
        webhooks        <base>/slack/events
        install         POST /v1/organizations/<organization>/install-links
        ");
    }
}
