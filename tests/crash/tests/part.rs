//! A part of the crash matrix, chosen so that each scenario has its share: the whole of it is `make crash`.

use anyhow::ensure;
use berth_crash::{Ground, Scenario, matrix};

/// Of the points before an effect, and of those after one, one in so many: less than two minutes in all.
const SHARE: usize = 9;

#[tokio::test]
async fn a_crash_at_any_point_loses_doubles_and_leaves_nothing() -> anyhow::Result<()> {
    let page = std::fs::read_to_string(matrix::path())?;
    let ground = Ground::start().await?;
    let mut passed = vec![];
    for (number, scenario) in Scenario::ALL.into_iter().enumerate() {
        let points = ground.points(scenario).await?;
        for point in share(&points, number) {
            let row = ground.crash(scenario, point).await?;
            let line = matrix::line(&row);
            ensure!(
                matrix::lines(&page, scenario).contains(&line.as_str()),
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

/// The part of a scenario's points that is tried: some of either kind, and from one scenario to the next others.
fn share(points: &[String], shift: usize) -> Vec<&String> {
    let kinds = ["/before", "/after"].into_iter().enumerate();
    kinds
        .flat_map(|(at, kind)| {
            let of_kind: Vec<_> = points.iter().filter(|it| it.ends_with(kind)).collect();
            let first = (shift + at * SHARE / 2) % of_kind.len().clamp(1, SHARE);
            of_kind.into_iter().skip(first).step_by(SHARE)
        })
        .collect()
}

#[test]
fn the_part_has_points_of_either_kind_in_every_scenario() {
    for pairs in 1..30 {
        let points: Vec<String> = (0..pairs)
            .flat_map(|it| [format!("{it}/before"), format!("{it}/after")])
            .collect();
        for shift in 0..20 {
            let chosen = share(&points, shift);
            for kind in ["/before", "/after"] {
                let of_kind = chosen.iter().filter(|it| it.ends_with(kind)).count();
                assert!(of_kind >= 1.max(pairs / SHARE), "{pairs} pairs: {chosen:?}");
            }
        }
    }
}
