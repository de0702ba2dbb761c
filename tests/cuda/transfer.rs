//! Channels and meetings, between streams of one GPU and of two.

use std::sync::Arc;

use dualweave::runtime::cuda::meeting::meeting;
use dualweave::runtime::cuda::transfer::channel;
use dualweave::runtime::cuda::{Device, Slice, device};

use crate::gpu::{Gpu, Random, gpu};
use crate::waiting::{OnPanic, alone, release_until_ended};

/// The first GPU, with the second one, or itself where there is none.
fn two() -> Option<(Gpu, Gpu)> {
    let first = gpu()?;
    let several = device::count().is_ok_and(|count| count > 1);
    let second = if several { Gpu::on(&Device::open(1).expect("a second GPU")) } else { Gpu::on(&first.device) };
    eprintln!("on {} GPUs", 1 + usize::from(several));
    Some((first, second))
}

const LENGTHS: [usize; 5] = [1, 16, 4099, 0, 1 << 20];

fn messages(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    LENGTHS.iter().map(|&length| (0..length).map(|_| random.bits() as u8).collect()).collect()
}

/// Sends all from one memory, which is overwritten after each, while another thread receives.
#[test]
fn sends_meet_receives_in_order() {
    let _alone = alone();
    let Some((mut here, mut there)) = two() else { return };
    let (mut sender, mut receiver) = channel(&here.device, &there.device).expect("a channel");
    let messages = messages(1);
    let sources: Vec<Slice<u8>> = messages.iter().map(|message| here.given(message)).collect();
    let staged: Slice<u8> = here.poisoned(1 << 20);
    let received: Vec<Slice<u8>> = LENGTHS.iter().map(|&length| there.poisoned(length)).collect();
    let flags = [Arc::clone(sender.flags()), Arc::clone(receiver.flags())];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _guard = OnPanic(flags.to_vec());
            for source in &sources {
                let staged = staged.part(0..source.len());
                staged.copy_from(&here.stream, *source).expect("copied");
                sender.send(&here.stream, staged).expect("sent");
            }
            here.stream.synchronize().expect("sent all");
        });
        scope.spawn(|| {
            let _guard = OnPanic(flags.to_vec());
            for into in &received {
                receiver.receive(&there.stream, *into).expect("received");
            }
            there.stream.synchronize().expect("received all");
        });
    });
    for (received, message) in received.iter().zip(&messages) {
        assert_eq!(received.read(&there.stream).expect("received"), *message);
    }
}

/// One thread launches both ends, whichever comes first.
#[test]
fn neither_end_blocks_its_thread() {
    let _alone = alone();
    let Some((mut here, mut there)) = two() else { return };
    let (mut sender, mut receiver) = channel(&here.device, &there.device).expect("a channel");
    let messages = messages(2);
    let sources: Vec<Slice<u8>> = messages.iter().map(|message| here.given(message)).collect();
    let mut room = || -> Vec<Slice<u8>> { LENGTHS.iter().map(|&length| there.poisoned(length)).collect() };
    let (received, again) = (room(), room());
    for source in &sources {
        sender.send(&here.stream, *source).expect("sent");
    }
    for into in &received {
        receiver.receive(&there.stream, *into).expect("received");
    }
    for into in &again {
        receiver.receive(&there.stream, *into).expect("received");
    }
    for source in &sources {
        sender.send(&here.stream, *source).expect("sent");
    }
    for (received, message) in received.iter().chain(&again).zip(messages.iter().chain(&messages)) {
        assert_eq!(received.read(&there.stream).expect("received"), *message);
    }
}

#[test]
fn lengths_that_differ_are_an_error_and_waiting_can_be_ended() {
    let _alone = alone();
    let Some((mut here, mut there)) = two() else { return };
    let (mut sender, mut receiver) = channel(&here.device, &there.device).expect("a channel");
    let (from, into): (Slice<u8>, Slice<u8>) = (here.poisoned(100), there.poisoned(99));
    sender.send(&here.stream, from).expect("nothing to meet yet");
    let error = receiver.receive(&there.stream, into).expect_err("99 are not 100");
    assert!(error.message().contains("100 bytes are sent where 99 are received"), "{error}");
    release_until_ended(&here.stream, &[sender.flags()]);
}

/// In each round every member writes a number into its memory, meets, reads everyone's, and meets again.
#[test]
fn members_see_what_came_before_a_meeting() {
    const ROUNDS: usize = 50;
    const BYTES: usize = 1 << 16;
    let _alone = alone();
    let Some((first, second)) = two() else { return };
    for count in [1, 2, 4] {
        let mut gpus: Vec<Gpu> =
            (0..count).map(|member| Gpu::on(if member % 2 == 0 { &first.device } else { &second.device })).collect();
        let devices: Vec<_> = gpus.iter().map(|gpu| Arc::clone(&gpu.device)).collect();
        let cells: Vec<Slice<u8>> = gpus.iter_mut().map(|gpu| gpu.poisoned(BYTES)).collect();
        let logs: Vec<Slice<u8>> = gpus.iter_mut().map(|gpu| gpu.poisoned(ROUNDS * count * BYTES)).collect();
        let meetings = meeting(&devices).expect("GPUs that reach each other");
        let flags: Vec<_> = meetings.iter().map(|meeting| Arc::clone(meeting.flags())).collect();
        std::thread::scope(|scope| {
            for ((gpu, mut meeting), log) in gpus.iter().zip(meetings).zip(&logs) {
                let (cells, flags) = (&cells, &flags);
                scope.spawn(move || {
                    let _guard = OnPanic(flags.clone());
                    let stream = &gpu.stream;
                    for round in 0..ROUNDS {
                        let number = (round * count + meeting.member()) as u8;
                        cells[meeting.member()].fill_bytes(stream, number).expect("written");
                        meeting.meet(stream).expect("met");
                        for (member, cell) in cells.iter().enumerate() {
                            let begin = (round * count + member) * BYTES;
                            log.part(begin..begin + BYTES).copy_from(stream, *cell).expect("read");
                        }
                        meeting.meet(stream).expect("met");
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

#[test]
fn a_meeting_that_nobody_comes_to_can_be_ended() {
    let _alone = alone();
    let Some((here, there)) = two() else { return };
    let devices = [&here.device, &there.device].map(Arc::clone);
    let mut meetings = meeting(&devices).expect("GPUs that reach each other");
    for _ in 0..5 {
        meetings[0].meet(&here.stream).expect("launched");
    }
    release_until_ended(&here.stream, &[meetings[0].flags()]);
}
