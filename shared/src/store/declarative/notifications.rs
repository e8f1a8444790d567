//! Declared endpoint of notifications.

use super::{
    Declarations, Plan, PlanStep,
    plan::{Diff, PlanObject},
};
use crate::store::{Store, StoreError, delete_endpoint};
use sqlx::PgConnection;

impl Store {
    pub(super) async fn apply_notifications(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let before = self.notification_endpoint_in(&mut *tx).await?;
        let Some(new) = &declared.notifications else {
            if before.is_some() && prune {
                delete_endpoint(tx).await?;
                plan.steps.push(PlanStep::delete(PlanObject::Notifications));
            } else if before.is_some() {
                plan.kept.push(PlanObject::Notifications.label());
            }
            return Ok(());
        };
        let (mut diff, old) = (Diff::new(before.is_some()), before.as_ref());
        diff.compare_text("url", old.map(|old| old.url.as_str()), Some(&new.url));
        diff.compare_secret("secret", old.map(|old| &old.secret), Some(&new.secret));
        let events = old.map(|old| old.events.join(","));
        diff.compare_text("events", events.as_deref(), Some(&new.events.join(",")));
        if diff.add_to_plan(plan, PlanObject::Notifications) {
            self.put_notification_endpoint(tx, new).await?;
        }
        Ok(())
    }
}
