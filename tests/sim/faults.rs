//! What goes wrong in a history. Each seed enables some faults and not others (swarm testing:
//! Groce and others, 2012): histories in which everything fails are all alike.

use super::clock::{MS, Nanos};
use super::rng::Rng;

/// How often what goes wrong, in a million, and how far.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub loss: u32,
    pub doubling: u32,
    /// Flipped bits and cut ends.
    pub corruption: u32,
    /// The shortest way takes so long.
    pub delay: Nanos,
    /// The longest takes so much longer: 0 keeps the order of every way.
    pub jitter: Nanos,
    /// Clocks go wrong by so much at the most, in millionths.
    pub skew_ppm: i64,
    /// Sends of a bus fail.
    pub send_fails: u32,
    /// The kinds of mishap that happen at times.
    pub mishaps: Vec<Mishap>,
    /// How long between two of them, at the most.
    pub mishap_every: Nanos,
    /// How often somebody asks for something out of the ordinary.
    pub odd: u32,
}

/// Something that happens to somebody at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Two parts of the network do not reach each other for a while.
    Partition,
    BusRestarts,
    /// The process of a bus stands still for a while.
    BusStops,
    PublisherRestarts,
    PublisherMoves,
    SubscriberRestarts,
    SubscriberDies,
    /// A subscriber's address changes.
    SubscriberMoves,
    /// Another host takes an address over.
    AddressTaken,
    SubscriberStops,
    SubscriberLeaves,
    WallClockJumps,
    /// A bus's own clock, which never goes back, leaps ahead, as where its machine stood still.
    ClockLeaps,
    LeaseStorm,
    /// One host asks far more often than it is answered.
    LeaseFlood,
    /// The data thread with the registrar stands still for a while, and the others go on.
    RegistrarStalls,
    Reload,
    Hostile,
    /// Many events at once, more than the buffers hold.
    Burst,
}

/// All of them.
pub const ALL: [Mishap; 19] = [
    Mishap::Partition,
    Mishap::BusRestarts,
    Mishap::BusStops,
    Mishap::PublisherRestarts,
    Mishap::PublisherMoves,
    Mishap::SubscriberRestarts,
    Mishap::SubscriberDies,
    Mishap::SubscriberMoves,
    Mishap::AddressTaken,
    Mishap::SubscriberStops,
    Mishap::SubscriberLeaves,
    Mishap::WallClockJumps,
    Mishap::ClockLeaps,
    Mishap::LeaseStorm,
    Mishap::LeaseFlood,
    Mishap::RegistrarStalls,
    Mishap::Reload,
    Mishap::Hostile,
    Mishap::Burst,
];

impl Mishap {
    /// What it is called where it is counted.
    pub fn name(self) -> String {
        format!("mishap: {self:?}")
    }
}

impl Faults {
    /// A seed's own.
    pub fn draw(rng: &mut Rng) -> Self {
        let mut some = |most: u64| match rng.chance(400_000) {
            true => 1 + rng.below(most) as u32,
            false => 0,
        };
        let (loss, doubling, corruption) = (some(200_000), some(100_000), some(50_000));
        let (send_fails, odd) = (some(100_000), some(500_000));
        let jitter = match rng.chance(500_000) {
            true => rng.range(MS, 800 * MS),
            false => 0,
        };
        let skew_ppm = match rng.chance(300_000) {
            true => rng.range(100, 20_000) as i64,
            false => 0,
        };
        let share = *rng.pick(&[0, 150_000, 300_000, 600_000]);
        Self {
            loss,
            doubling,
            corruption,
            delay: rng.range(20_000, 20 * MS),
            jitter,
            skew_ppm,
            send_fails,
            mishaps: ALL.into_iter().filter(|_| rng.chance(share)).collect(),
            mishap_every: rng.range(100 * MS, 3_000 * MS),
            odd,
        }
    }

    /// Nothing goes wrong any more. Clocks stay as wrong as they are.
    pub fn stop(&mut self) {
        *self = Self {
            delay: self.delay,
            skew_ppm: self.skew_ppm,
            ..Self::default()
        };
    }

    /// Whether a stranger, or a flipped bit, can say what nobody said.
    pub fn can_lie(&self) -> bool {
        self.corruption > 0 || self.mishaps.contains(&Mishap::Hostile)
    }

    /// Whether datagrams of one way come in their order, each once.
    pub fn keeps_order(&self) -> bool {
        self.jitter == 0 && self.doubling == 0 && !self.can_lie()
    }
}
