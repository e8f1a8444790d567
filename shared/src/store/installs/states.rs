//! OAuth states. Each belongs to one installation in one browser, and is taken once.

use super::links::{FoundInstallLink, open_link, open_link_columns};
use crate::domain::{InstallHash, InstallState};
use crate::store::{Store, StoreError, inconsistent};
use sqlx::Row;
use std::time::Duration;
use time::OffsetDateTime;

/// Lifetime of a state.
const LIFETIME: Duration = Duration::from_secs(600);
/// Maximum states of a link that are open at once.
const MAX_OPEN_STATES: i64 = 200;

/// State that this call has taken.
#[derive(Debug)]
pub struct ConsumedState {
    /// Link that began the installation.
    pub link: FoundInstallLink,
    /// Redirect URL that was sent to Slack.
    pub redirect_url: String,
    /// Time before the exchange of the code, by Postgres's clock.
    pub taken_at: OffsetDateTime,
}

/// Reason why a state is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateRejection {
    /// No installation has this state, or the state was deleted after its expiry.
    Unknown,
    /// Another browser began the installation.
    OtherBrowser,
    /// The state was taken already.
    Consumed,
    /// The state has expired.
    Expired,
}

impl Store {
    /// Begins an installation by a link in a browser. Returns false for a link that is not open, or
    /// that has too many open states.
    pub async fn begin_install(
        &self,
        link: &InstallHash,
        browser: &InstallHash,
        state: &InstallState,
        redirect_url: &str,
    ) -> Result<bool, StoreError> {
        let begun = sqlx::query(
            "-- installs.begin
             insert into install_states (state_hash, browser_hash, link_hash, redirect_url,
                                         expires_at)
             select $1, $2, l.link_hash, $4, now() + make_interval(secs => $5)
               from install_links l
              where l.link_hash = $3 and l.revoked_at is null and l.expires_at > now()
                and (select count(*) from install_states s
                      where s.link_hash = $3 and s.expires_at > now()) < $6",
        )
        .bind(state.hash().as_bytes())
        .bind(browser.as_bytes())
        .bind(link.as_bytes())
        .bind(redirect_url)
        .bind(LIFETIME.as_secs_f64())
        .bind(MAX_OPEN_STATES)
        .execute(&self.pool)
        .await?;
        // Expired states are deleted an hour later, when the next is created: until then a late
        // browser sees that its state has expired.
        sqlx::query(
            "-- installs.sweep_states
             delete from install_states where ctid = any (array (
                 select ctid from install_states where expires_at < now() - interval '1 hour'
                  limit 1000))",
        )
        .execute(&self.pool)
        .await?;
        Ok(begun.rows_affected() > 0)
    }

    /// Takes a state for the browser that began it. One call succeeds.
    pub async fn consume_install_state(
        &self,
        state: &InstallHash,
        browser: &InstallHash,
    ) -> Result<Result<ConsumedState, StateRejection>, StoreError> {
        let row = sqlx::query(concat!(
            "-- installs.take_state
             with taken as (
                 update install_states set consumed_at = clock_timestamp()
                  where state_hash = $1 and browser_hash = $2 and consumed_at is null
                    and expires_at > now()
                 returning link_hash, redirect_url, consumed_at)
             select t.redirect_url, t.consumed_at, ",
            open_link_columns!(),
            " from taken t join install_links l on l.link_hash = t.link_hash
               join organizations o on o.id = l.org_id"
        ))
        .bind(state.as_bytes())
        .bind(browser.as_bytes())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else {
            return Ok(Err(self.state_rejection(state, browser).await?));
        };
        let hash: Vec<u8> = row.try_get("link_hash")?;
        let hash = InstallHash::from_stored(&hash).ok_or_else(|| {
            inconsistent("install_states", "link_hash", &state.id(), "not a hash")
        })?;
        Ok(Ok(ConsumedState {
            link: open_link(hash, &row)?,
            redirect_url: row.try_get("redirect_url")?,
            taken_at: row.try_get("consumed_at")?,
        }))
    }

    async fn state_rejection(
        &self,
        state: &InstallHash,
        browser: &InstallHash,
    ) -> Result<StateRejection, StoreError> {
        let row = sqlx::query(
            "-- installs.state
             select browser_hash = $2 as is_own, consumed_at is not null as is_consumed
               from install_states where state_hash = $1",
        )
        .bind(state.as_bytes())
        .bind(browser.as_bytes())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(StateRejection::Unknown) };
        Ok(match (row.try_get("is_own")?, row.try_get("is_consumed")?) {
            (false, _) => StateRejection::OtherBrowser,
            (true, true) => StateRejection::Consumed,
            (true, false) => StateRejection::Expired,
        })
    }
}
