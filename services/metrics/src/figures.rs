//! A sample as a row of numbers, which is how it is kept.

use berth_domain::usage::{Pressure, Traffic, Usage};

/// What was used up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) usage: Usage,
    /// `None` where there is no link.
    pub(crate) traffic: Option<Traffic>,
}

const PRESSURE: u64 = 1;
const TRAFFIC: u64 = 2;

/// The figures, and which of the parts that may be missing are there.
pub(crate) const WIDTH: usize = 29 + 1;

/// In the order of a row.
fn figures<'a>(
    usage: &'a mut Usage,
    pressure: &'a mut Pressure,
    traffic: &'a mut Traffic,
) -> [&'a mut u64; WIDTH - 1] {
    [
        &mut usage.total_cpu_time,
        &mut usage.user_cpu_time,
        &mut usage.kernel_cpu_time,
        &mut usage.cpu_periods,
        &mut usage.throttled_periods,
        &mut usage.throttled_time,
        &mut usage.memory_usage,
        &mut usage.memory_working_set,
        &mut usage.memory_peak,
        &mut usage.swap_usage,
        &mut usage.swap_peak,
        &mut usage.oom_kills,
        &mut usage.pids,
        &mut usage.io_read_bytes,
        &mut usage.io_written_bytes,
        &mut usage.io_reads,
        &mut usage.io_writes,
        &mut pressure.cpu.some,
        &mut pressure.cpu.full,
        &mut pressure.memory.some,
        &mut pressure.memory.full,
        &mut pressure.io.some,
        &mut pressure.io.full,
        &mut traffic.received_bytes,
        &mut traffic.sent_bytes,
        &mut traffic.received_packets,
        &mut traffic.sent_packets,
        &mut traffic.received_drops,
        &mut traffic.sent_drops,
    ]
}

impl Figures {
    pub(crate) fn to_row(mut self) -> [u64; WIDTH] {
        let has = |there: bool, bit: u64| if there { bit } else { 0 };
        let parts =
            has(self.usage.pressure.is_some(), PRESSURE) | has(self.traffic.is_some(), TRAFFIC);
        let (mut pressure, mut traffic) = (
            self.usage.pressure.unwrap_or_default(),
            self.traffic.unwrap_or_default(),
        );
        let mut row = [parts; WIDTH];
        let figures = figures(&mut self.usage, &mut pressure, &mut traffic);
        for (place, figure) in row.iter_mut().zip(figures) {
            *place = *figure;
        }
        row
    }

    pub(crate) fn of_row(row: &[u64; WIDTH]) -> Self {
        let (mut usage, mut pressure, mut traffic) =
            (Usage::default(), Pressure::default(), Traffic::default());
        let figures = figures(&mut usage, &mut pressure, &mut traffic);
        for (figure, place) in figures.into_iter().zip(row) {
            *figure = *place;
        }
        let [.., parts] = row;
        usage.pressure = (parts & PRESSURE != 0).then_some(pressure);
        Self {
            usage,
            traffic: (parts & TRAFFIC != 0).then_some(traffic),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::usage::Stall;

    use super::*;

    /// Every figure is another number.
    fn distinct() -> [u64; WIDTH] {
        let mut row = [0; WIDTH];
        for (number, figure) in row.iter_mut().enumerate() {
            *figure = 100 + number as u64;
        }
        row[WIDTH - 1] = PRESSURE | TRAFFIC;
        row
    }

    #[test]
    fn a_row_is_read_back_figure_by_figure() {
        assert_eq!(Figures::of_row(&distinct()).to_row(), distinct());
        let figures = Figures::of_row(&distinct());
        assert_eq!(figures.usage.total_cpu_time, 100);
        assert_eq!(figures.traffic.unwrap().sent_drops, 100 + WIDTH as u64 - 2);
    }

    #[test]
    fn a_part_that_is_not_there_stays_away() {
        let stall = Stall { some: 1, full: 0 };
        let pressure = Pressure {
            cpu: stall,
            ..Pressure::default()
        };
        for (pressure, traffic) in [
            (None, None),
            (Some(pressure), None),
            (None, Some(Traffic::default())),
        ] {
            let usage = Usage {
                pressure,
                ..Usage::default()
            };
            let figures = Figures { usage, traffic };
            assert_eq!(Figures::of_row(&figures.to_row()), figures);
        }
    }
}
