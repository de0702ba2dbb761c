//! Links and meetings, between streams of one GPU and of two.

use std::time::Duration;

use dualweave::runtime::cuda::signals::{link, meeting};
use dualweave::runtime::cuda::watch::Watch;
use dualweave::runtime::cuda::{Device, Slice, device};

use crate::gpu::{Gpu, Random, gpu};

/// How long to wait for the other end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The first GPU, with the second one, or itself where there is none.
fn two() -> Option<(Gpu, Gpu)> {
    let first = gpu()?;
    let several = device::count().is_ok_and(|count| count > 1);
    let second = if several { Gpu::on(&Device::open(1).expect("a second GPU")) } else { Gpu::on(&first.device) };
    eprintln!("on {} GPUs", 1 + usize::from(several));
    Some((first, second))
}

/// Sends all from one memory, which is overwritten after each, while another thread receives.
#[test]
fn sends_meet_receives_in_order() {
    const LENGTHS: [usize; 5] = [1, 16, 4099, 0, 1 << 20];
    let Some((mut here, mut there)) = two() else { return };
    let (mut sender, mut receiver) = link(&here.device, &there.device).expect("a link");
    let mut random = Random::new(1);
    let messages: Vec<Vec<u8>> =
        LENGTHS.iter().map(|&length| (0..length).map(|_| random.bits() as u8).collect()).collect();
    let sources: Vec<Slice<u8>> = messages.iter().map(|message| here.given(message)).collect();
    let staged: Slice<u8> = here.poisoned(1 << 20);
    let received: Vec<Slice<u8>> = LENGTHS.iter().map(|&length| there.poisoned(length)).collect();
    let watch = &Watch::new(PATIENCE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (source, into) in sources.iter().zip(&received) {
                let staged = staged.part(0..source.len());
                staged.copy_from(&here.stream, *source).expect("copied");
                sender.send(&here.stream, staged, *into, watch).expect("sent");
            }
            here.stream.synchronize().expect("sent all");
        });
        scope.spawn(|| {
            received.iter().for_each(|into| receiver.receive(&there.stream, *into, watch).expect("received"));
            there.stream.synchronize().expect("received all");
        });
    });
    for (received, message) in received.iter().zip(&messages) {
        assert_eq!(received.read(&there.stream).expect("received"), *message);
    }
}

#[test]
fn an_end_that_is_left_alone_gives_up() {
    let Some((here, mut there)) = two() else { return };
    let (mut sender, _receiver) = link(&here.device, &there.device).expect("a link");
    let room: Slice<u8> = there.poisoned(64);
    let watch = Watch::new(Duration::from_millis(50));
    let error = sender.send(&here.stream, room, room, &watch).expect_err("nobody receives");
    assert!(error.message().contains("has not been reached"), "{error}");
}

/// In each round every member writes a number into its memory, meets, reads everyone's, and meets again.
#[test]
fn members_see_what_came_before_a_meeting() {
    const ROUNDS: usize = 50;
    const BYTES: usize = 1 << 16;
    let Some((first, second)) = two() else { return };
    for count in [1, 2, 4] {
        let mut gpus: Vec<Gpu> =
            (0..count).map(|member| Gpu::on(if member % 2 == 0 { &first.device } else { &second.device })).collect();
        let devices: Vec<_> = gpus.iter().map(|gpu| std::sync::Arc::clone(&gpu.device)).collect();
        let cells: Vec<Slice<u8>> = gpus.iter_mut().map(|gpu| gpu.poisoned(BYTES)).collect();
        let logs: Vec<Slice<u8>> = gpus.iter_mut().map(|gpu| gpu.poisoned(ROUNDS * count * BYTES)).collect();
        let meetings = meeting(&devices).expect("GPUs that reach each other");
        let watch = &Watch::new(PATIENCE);
        std::thread::scope(|scope| {
            for ((gpu, mut meeting), log) in gpus.iter().zip(meetings).zip(&logs) {
                let cells = &cells;
                scope.spawn(move || {
                    let stream = &gpu.stream;
                    for round in 0..ROUNDS {
                        let number = (round * count + meeting.member()) as u8;
                        cells[meeting.member()].fill_bytes(stream, number).expect("written");
                        meeting.meet(stream, watch).expect("met");
                        for (member, cell) in cells.iter().enumerate() {
                            let begin = (round * count + member) * BYTES;
                            log.part(begin..begin + BYTES).copy_from(stream, *cell).expect("read");
                        }
                        meeting.meet(stream, watch).expect("met");
                    }
                    stream.synchronize().expect("all rounds");
                });
            }
        });
        let expected: Vec<u8> = (0..ROUNDS * count).flat_map(|number| vec![number as u8; BYTES]).collect();
        for (gpu, log) in gpus.iter().zip(&logs) {
            assert!(log.read(&gpu.stream).expect("a log") == expected, "{count} members");
        }
    }
}
