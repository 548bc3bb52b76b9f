package sandbox

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// relayed are the signals a caller sends to `gatun run` and means for the command. SIGTSTP is
// not among them: left alone it stops the whole process group, as job control wants.
func relayed() []syscall.Signal {
	return []syscall.Signal{
		unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP,
		unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGWINCH,
	}
}

// terminalSends reports whether the kernel sends sig to a whole foreground process group when
// a key is pressed or the window changes.
func terminalSends(sig syscall.Signal) bool {
	return sig == unix.SIGINT || sig == unix.SIGQUIT || sig == unix.SIGWINCH
}

// inForeground reports whether our process group, which is also the command's, is the one the
// terminal talks to. The controlling terminal counts, not the standard input, which may be a
// pipe.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// CatchSignals keeps the signals that are meant for the command from ending the caller, from now on.
// It is to be called before Go: a command may expect a signal as soon as it runs. What came before
// relay is called is passed on then.
//
// relay passes them on until ctx ends. A signal that the terminal has already sent to the command,
// which is in the same process group, is not sent twice. Signals that are ignored (nohup) stay ignored.
func (b *Box) CatchSignals() (relay func(context.Context) error) {
	ch := make(chan os.Signal, 16)
	for _, sig := range relayed() {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
	return func(ctx context.Context) error {
		defer signal.Stop(ch)
		return b.relaySignals(ctx, ch)
	}
}

func (b *Box) relaySignals(ctx context.Context, ch <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case got := <-ch:
			sig, ok := got.(syscall.Signal)
			if !ok || terminalSends(sig) && inForeground() {
				continue
			}
			if err := b.Signal(sig); err != nil {
				return err
			}
		}
	}
}
