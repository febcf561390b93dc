//! Reports an access to a mapped file that another program has shortened.

use std::os::fd::BorrowedFd;

use danlu_model::mapped_file_at;
use signal_hook::consts::SIGBUS;
use signal_hook::low_level::{emulate_default_handler, exit};
use signal_hook_registry::register_sigaction;

/// File descriptor of standard error. The descriptor is used directly, because a signal handler must not take
/// the lock of `std::io::stderr`.
const STDERR: i32 = 2;

const REASON: &str = "`: the file became shorter while danlu was reading it\n\n\
    hint: put the whole file back and run the command again; `danlu train --resume` continues from the last checkpoint\n";

/// Makes SIGBUS print the name of the mapped file and exit with code 1. A SIGBUS at any other address ends
/// the process as usual.
pub fn install() {
    // SAFETY: the handler only reads atomics, writes to a file descriptor and exits. A signal handler may do
    // all of these.
    let installed = unsafe { register_sigaction(SIGBUS, |info| report(fault_address(info))) };
    // If the handler is not installed, a SIGBUS ends the process without the message.
    let _ = installed;
}

fn fault_address(info: &libc::siginfo_t) -> usize {
    // SAFETY: the kernel sets the address of a SIGBUS that was raised by a memory access.
    unsafe { info.si_addr() as usize }
}

fn report(address: usize) {
    let Some(path) = mapped_file_at(address) else {
        // The default action ends the process. If that action fails too, the access raises the signal again.
        let _ = emulate_default_handler(SIGBUS);
        return;
    };
    for part in ["\nerror: cannot read `", path, REASON] {
        write(part.as_bytes());
    }
    exit(1);
}

/// Writes to standard error without a lock or an allocation.
pub fn write(mut bytes: &[u8]) {
    // SAFETY: standard error stays open until the process exits. If standard error were closed, only the
    // write would fail.
    let stderr = unsafe { BorrowedFd::borrow_raw(STDERR) };
    while !bytes.is_empty() {
        match rustix::io::write(stderr, bytes) {
            Ok(count) if count > 0 => bytes = &bytes[count..],
            _ => return,
        }
    }
}
