//! A part of the crash matrix, chosen so that each scenario has its share: the whole of it is `make crash`.

use anyhow::ensure;
use berth_crash::{Ground, Scenario, matrix};

/// Of the points of a scenario, one in so many: about a minute in all.
const SHARE: usize = 6;

#[tokio::test]
async fn a_crash_at_any_point_loses_doubles_and_leaves_nothing() -> anyhow::Result<()> {
    let page = std::fs::read_to_string(matrix::path())?;
    let ground = Ground::start().await?;
    let mut passed = vec![];
    for scenario in Scenario::ALL {
        let points = ground.points(scenario).await?;
        for point in points.iter().step_by(SHARE) {
            let row = ground.crash(scenario, point).await?;
            let line = matrix::line(&row);
            ensure!(
                page.contains(&line),
                "`make crash` writes it anew: {line} is not in the page"
            );
        }
        passed.extend(points);
    }
    ensure!(
        passed == matrix::points(&page),
        "`make crash` writes it anew: the points are {passed:#?}"
    );
    ground.finish().await
}
