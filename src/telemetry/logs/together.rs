//! Lines that are written together.
//!
//! There is a line for each decision, and to write it alone takes longer than to make it. So lines of little moment wait a tenth of a
//! second for others. Warnings and errors do not wait, and take along what came before them. A process that is killed loses what waits:
//! a decision stands in its pod and in the audit log, too.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line may wait.
const WAIT: Duration = Duration::from_millis(100);

/// How much may wait, in bytes.
const ROOM: usize = 16 * 1024;

/// Where lines go. All clones are one.
#[derive(Clone)]
pub(super) struct Together(Arc<Waiting>);

struct Waiting {
    lines: Mutex<Lines>,
    there_are_some: Condvar,
}

struct Lines {
    waiting: Vec<u8>,
    out: Box<dyn Write + Send>,
}

impl Together {
    /// Starts the thread that writes. It ends with the process.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Mutex::new(Lines { waiting: Vec::with_capacity(ROOM), out: Box::new(out) });
        let together = Self(Arc::new(Waiting { lines, there_are_some: Condvar::new() }));
        let writes = together.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writes.write_now_and_then())?;
        Ok(together)
    }

    /// Writes what waits.
    pub(super) fn flush(&self) {
        self.lines().write();
    }

    fn write_now_and_then(&self) {
        loop {
            let lines = self.0.there_are_some.wait_while(self.lines(), |lines| lines.waiting.is_empty());
            drop(lines);
            thread::sleep(WAIT);
            self.flush();
        }
    }

    /// A panic while lines are added leaves a line cut short at worst.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8], is_urgent: bool) {
        let mut lines = self.lines();
        let is_first = lines.waiting.is_empty();
        lines.waiting.extend_from_slice(line);
        if is_urgent || lines.waiting.len() >= ROOM {
            lines.write();
        } else if is_first {
            self.0.there_are_some.notify_one();
        }
    }
}

impl Lines {
    /// Nothing can be done about a log that cannot be written, and nowhere to say it.
    fn write(&mut self) {
        let _ = self.out.write_all(&self.waiting).and_then(|()| self.out.flush());
        self.waiting.clear();
    }
}

/// Writes lines of one level.
pub(super) struct Writer<'t> {
    to: &'t Together,
    is_urgent: bool,
}

impl Write for Writer<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.add(line, self.is_urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush();
        Ok(())
    }
}

impl<'t> MakeWriter<'t> for Together {
    type Writer = Writer<'t>;

    fn make_writer(&'t self) -> Writer<'t> {
        Writer { to: self, is_urgent: true }
    }

    fn make_writer_for(&'t self, metadata: &Metadata<'_>) -> Writer<'t> {
        Writer { to: self, is_urgent: *metadata.level() <= Level::WARN }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Hands on each write.
    struct Out(Sender<String>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The test may have seen enough.
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn together() -> (Together, Receiver<String>) {
        let (out, written) = channel();
        (Together::start(Out(out)).unwrap(), written)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn lines_are_written_in_their_order_without_anything_that_follows() {
        let (together, written) = together();
        for round in 0..3 {
            let line = format!("line of round {round}\n");
            together.add(line.as_bytes(), false);
            together.add(b"next\n", false);
            let lines = line + "next\n";
            let mut seen = String::new();
            while seen.len() < lines.len() {
                seen += &written.recv_timeout(SOON).unwrap();
            }
            assert_eq!(seen, lines);
        }
    }

    #[test]
    fn a_warning_is_written_at_once_and_what_came_before_it_too() {
        let (together, written) = together();
        together.add(b"info\n", false);
        together.add(b"warning\n", true);
        // By this thread: nobody has to be waited for.
        let seen: String = written.try_iter().collect();
        assert_eq!(seen, "info\nwarning\n");
    }

    #[test]
    fn what_waits_is_bounded() {
        let (together, written) = together();
        let line = vec![b'x'; ROOM / 4];
        (0..40).for_each(|_| together.add(&line, false));
        let seen: Vec<_> = written.try_iter().collect();
        assert!(seen.len() >= 10 && seen.iter().all(|written| written.len() <= ROOM), "{}", seen.len());
    }
}
