//! Crashes at every point, and writes the page of what came of it. With arguments, as `berth-crash Stop create/bury`, it
//! crashes only at points whose name has one of them, or that belong to the scenario of this name, and writes nothing.

use berth_crash::{Ground, Scenario, matrix};

#[tokio::main]
#[expect(
    clippy::print_stdout,
    reason = "the progress and the result of the program"
)]
async fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let ground = Ground::start().await?;
    let mut rows = vec![];
    for scenario in Scenario::ALL {
        let whole = wanted.is_empty() || wanted.contains(&scenario.to_string());
        for point in ground.points(scenario).await? {
            if !whole && !wanted.iter().any(|it| point.contains(it)) {
                continue;
            }
            let row = ground.crash(scenario, &point).await?;
            println!("{scenario}: {}", matrix::line(&row));
            rows.push(row);
        }
    }
    ground.finish().await?;
    if wanted.is_empty() {
        std::fs::write(matrix::path(), matrix::render(&rows))?;
    }
    println!("{} points, all well", rows.len());
    Ok(())
}
