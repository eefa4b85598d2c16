//! Crashes at every point, and writes the page of what came of it. With numbers, as `berth-crash 3 40`, only at those of the
//! list, and nothing is written.

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
        for point in ground.points(scenario).await? {
            if !wanted.is_empty() && !wanted.iter().any(|it| point.contains(it)) {
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
