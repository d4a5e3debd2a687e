//! A fast way through a filter for calls that are always allowed.
//!
//! The kernel runs a new filter once for every call number, to learn which need no look at the arguments. With a chain of
//! comparisons, as seccompiler writes it, that takes most of a millisecond at every launch; with a binary search over runs
//! of numbers it takes a few microseconds. So the search is put in front of seccompiler's program, which then only holds
//! the calls with conditions. Jumps are relative, so the two are simply joined.

use seccompiler::{BpfProgram, sock_filter};

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const ALLOW: u32 = 0x7fff_0000;

/// `AUDIT_ARCH_*` of the machine we are built for; seccompiler knows the same ones.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;

fn op(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Runs of consecutive numbers, first and last.
fn runs(numbers: impl IntoIterator<Item = i64>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers.into_iter().filter_map(|n| u32::try_from(n).ok()) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

/// The search, followed by `rest`, which decides about whatever isn't found.
pub(super) fn allow_first(numbers: impl IntoIterator<Item = i64>, rest: BpfProgram) -> BpfProgram {
    let mut search = Vec::new();
    emit(&runs(numbers), &mut search);
    let end = search.len();
    for (at, op) in
        search.iter_mut().enumerate().filter(|(_, op)| op.k == TO_THE_END && op.code == JUMP)
    {
        op.k = (end - at - 1) as u32;
    }
    // Another architecture has other numbers: leave it to the rest.
    let skip = end as u32 + 1;
    let mut program = vec![
        op(LOAD, 0, 0, 4),
        op(EQUAL, 1, 0, ARCHITECTURE),
        op(JUMP, 0, 0, skip),
        op(LOAD, 0, 0, 0),
    ];
    program.extend(search);
    program.extend(rest);
    program
}

/// Stands for the distance to the end until that is known. No program is so long.
const TO_THE_END: u32 = u32::MAX;

/// Decides by the run in the middle, then by those on one side of it.
fn emit(runs: &[(u32, u32)], out: &mut BpfProgram) {
    let middle = runs.len() / 2;
    let Some((first, last)) = runs.get(middle) else {
        out.push(op(JUMP, 0, 0, TO_THE_END));
        return;
    };
    let mut left = Vec::new();
    emit(&runs[..middle], &mut left);
    let over = left.len() + 2;
    match u8::try_from(over) {
        Ok(over) => out.push(op(GREATER, over, 0, *last)),
        // Conditional jumps are short.
        Err(_) => out.extend([op(GREATER, 0, 1, *last), op(JUMP, 0, 0, over as u32)]),
    }
    out.push(op(AT_LEAST, 0, 1, *first));
    out.push(op(RETURN, 0, 0, ALLOW));
    out.append(&mut left);
    emit(&runs[middle + 1..], out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program of the few operations used here.
    fn run(program: &[sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let op = &program[at];
            let mut jump =
                |condition: bool| at += usize::from(if condition { op.jt } else { op.jf });
            match op.code {
                LOAD => value = if op.k == 4 { architecture } else { number },
                JUMP => at += op.k as usize,
                EQUAL => jump(value == op.k),
                GREATER => jump(value > op.k),
                AT_LEAST => jump(value >= op.k),
                RETURN => return op.k,
                other => panic!("{other:#x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn finds_exactly_what_was_given() {
        for modulus in [1, 2, 3, 7, 100, 1000] {
            let numbers = || (0..450).filter(move |n| n % modulus < modulus / 2 + 1 && n % 11 != 0);
            let program = allow_first(numbers(), vec![op(RETURN, 0, 0, 7)]);
            for number in 0..500 {
                let expected = if numbers().any(|n| n == i64::from(number)) { ALLOW } else { 7 };
                assert_eq!(run(&program, ARCHITECTURE, number), expected, "{number} of {modulus}");
                assert_eq!(run(&program, 1, number), 7);
            }
        }
    }
}
