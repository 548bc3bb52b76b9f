package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gatun/api"
)

// errUnconfirmed is the end of an `up --confirm` that nobody confirmed in time.
var errUnconfirmed = errors.New("not confirmed")

// The bounds of --confirm: less cannot be typed, and more is no precaution.
const (
	minConfirm = time.Second
	maxConfirm = 24 * time.Hour
)

// confirmTime is the value of --confirm. 0: nothing has to be confirmed.
type confirmTime time.Duration

// Set implements the value of a flag.
func (c *confirmTime) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d < minConfirm || d > maxConfirm {
		return fmt.Errorf("want a duration from 1s to 24h such as 60s, got %q", text)
	}
	*c = confirmTime(d)
	return nil
}

// String implements the value of a flag.
func (c *confirmTime) String() string {
	if *c == 0 {
		return ""
	}
	return time.Duration(*c).String()
}

// Type implements the value of a flag.
func (c *confirmTime) Type() string { return "duration" }

// confirmation is what `up --confirm` promises: what it brings up is rolled back unless somebody
// says in time that it works. It is settled once, either way: a late confirmation never holds up
// a roll-back, and after a timely one there is none. The zero value waits for nothing.
//
// It lives in memory only, so a restart begins anew.
type confirmation struct {
	limit time.Duration // 0: nothing has to be confirmed
	talk  io.Writer

	mu    sync.Mutex // guards the rest
	phase confirmPhase
	until time.Time // with the monotonic clock: setting the system's moves nothing
}

type confirmPhase uint8

const (
	confirmIdle    confirmPhase = iota // nothing was brought up, or nothing has to be confirmed
	confirmWaiting                     // the time runs
	confirmDone                        // it stays up
	confirmOver                        // it is rolled back
)

// begin starts the time. The second time it does nothing.
func (c *confirmation) begin(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit > 0 && c.phase == confirmIdle {
		c.phase, c.until = confirmWaiting, now.Add(c.limit)
	}
}

// confirm ends the waiting, or says why it cannot. The clock decides, not which of two
// goroutines a busy machine lets run first.
func (c *confirmation) confirm(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == confirmWaiting && now.Before(c.until):
		c.phase = confirmDone
		return nil
	case c.phase == confirmDone:
		return errors.New("nothing waits for a confirmation: it was confirmed already")
	case c.phase == confirmIdle:
		return errNoConfirm
	default:
		c.phase = confirmOver
		return errors.New("nothing waits for a confirmation: it came too late, and everything is rolled back")
	}
}

// errNoConfirm is the answer to a confirmation that nobody asked for.
var errNoConfirm = errors.New("nothing waits for a confirmation: gatun was not started with `up --confirm`")

// expire ends the waiting without a confirmation and reports whether there was none.
func (c *confirmation) expire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == confirmWaiting {
		c.phase = confirmOver
	}
	return c.phase == confirmOver
}

// left is how much time there is to confirm. ok is false if nothing waits.
func (c *confirmation) left(now time.Time) (left time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.until.Sub(now)), c.phase == confirmWaiting
}

// open reports whether what was brought up has to be rolled back if it ends now.
func (c *confirmation) open() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase == confirmWaiting || c.phase == confirmOver
}

// wait returns errUnconfirmed when the time is over and nobody confirmed, nil otherwise.
func (c *confirmation) wait(ctx context.Context) error {
	left, waiting := c.left(time.Now())
	if !waiting {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	if c.expire() {
		return fmt.Errorf("%w within %s", errUnconfirmed, inWords(c.limit))
	}
	return nil
}

// rolledBack is the error of a roll-back, which itself ended with failed.
func rolledBack(cause, failed error) error {
	if failed != nil {
		return fmt.Errorf("%w, and it could not be rolled back: %w\nthe machine stays closed; open it with `gatun recover`", cause, failed)
	}
	return fmt.Errorf("%w: rolled back", cause)
}

// rollBackAfter keeps the promise where gatun failed before anybody could confirm. A failure
// closes and does not open, so the machine is closed until the time is over, or until the person
// who waits for it orders otherwise with ^C.
func (c *confirmation) rollBackAfter(ctx context.Context, cause error, down func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if left, waiting := c.left(time.Now()); waiting {
		_, _ = fmt.Fprintf(c.talk, "gatun: %v\nthe machine is closed now; everything is rolled back in %s, or at once by ^C\n", cause, inWords(left.Round(time.Second)))
	}
	_ = c.wait(ctx)
	return rolledBack(cause, down(context.WithoutCancel(ctx)))
}

// outlive keeps the end of the terminal, or of whoever reads the log, from ending us: the one whose
// session has hung up is the one whom the roll-back is for. It holds until the last line is written.
func outlive() {
	ends := make(chan os.Signal, 1) // nobody reads it: that it is there replaces what they do by default
	signal.Notify(ends, syscall.SIGHUP, syscall.SIGPIPE)
}

// status is what the API says of it, nil if nothing waits, with a sentence for people.
func (c *confirmation) status(now time.Time) (*api.ConfirmStatus, string) {
	left, waiting := c.left(now)
	if !waiting {
		return nil, ""
	}
	s := &api.ConfirmStatus{Until: now.Add(left).UTC(), SecondsLeft: int(math.Ceil(left.Seconds()))}
	return s, "not confirmed yet: " + confirmText(s)
}

func confirmText(s *api.ConfirmStatus) string {
	return "everything is rolled back in " + inWords(time.Duration(s.SecondsLeft)*time.Second) + " unless `gatun confirm` comes"
}

// inWords is a duration as a person says it: 60 s, 5m, 1h30m.
func inWords(d time.Duration) string {
	if d < 2*time.Minute {
		return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + " s"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func confirmCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use: "confirm", Short: "Keep what `gatun up --confirm` brought up", Args: cobra.NoArgs,
		Long: "Keep what `gatun up --confirm DURATION` brought up: without it everything is rolled back when that time is over.\n" +
			"Exit code: 0 confirmed, 1 nothing waits for a confirmation, 5 not running.",
		RunE: func(c *cobra.Command, _ []string) error {
			var s api.Status
			if err := p.client().Post(c.Context(), "/v1/confirm", &s); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.ErrOrStderr(), "confirmed: gatun stays up")
			return err
		},
	}
}

// completeConfirm offers times that people choose.
func completeConfirm(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"60s", "5m", "1h"}, cobra.ShellCompDirectiveNoFileComp
}
