//! `tidegate export`: prints an organization as JSON lines.

use crate::{output, settings::StoreSettings};
use shared::{domain::OrgId, store::ExportPosition};

/// Arguments of `tidegate export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Organization id.
    organization: OrgId,
    #[command(flatten)]
    store: StoreSettings,
}

impl Export {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let operations = self.store.operations(&self.store.open()?)?;
        let begun = operations.begin_export(&self.organization).await;
        output::require_found(begun, "tidegate apply")?;
        let mut at = Some(ExportPosition::default());
        while let Some(position) = at {
            let (rows, next) = operations.export_page(&self.organization, &position).await?;
            rows.iter().try_for_each(output::print_json)?;
            at = next;
        }
        Ok(())
    }
}
