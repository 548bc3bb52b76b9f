package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"gatun/api"
	"gatun/config"
	"gatun/network"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// after is a confirmation whose time began at noon and that has seen these events: "b" begins,
// "c SECONDS" confirms so long after noon, "x" is the timer.
func after(t *testing.T, limit time.Duration, events ...string) *confirmation {
	t.Helper()
	c := &confirmation{limit: limit, talk: io.Discard}
	for _, e := range events {
		switch kind, at, _ := strings.Cut(e, " "); kind {
		case "b":
			c.begin(noon)
		case "c":
			d, err := time.ParseDuration(at)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.confirm(noon.Add(d))
		case "x":
			c.expire()
		}
	}
	return c
}

// Every order of events leads to one end, and it stays.
func TestConfirmationIsSettledOnce(t *testing.T) {
	const minute = time.Minute
	for _, tt := range []struct {
		limit    time.Duration
		events   []string
		says     string // to a confirmation 30 s after noon; "" accepts it
		rollBack bool   // at the end of the time
	}{
		{0, nil, "not started with `up --confirm`", false},
		{0, []string{"b"}, "not started with `up --confirm`", false},
		{0, []string{"b", "x"}, "not started with `up --confirm`", false},
		{minute, nil, "not started", false}, // nothing is up yet: there is nothing to keep
		{minute, []string{"b"}, "", false},
		{minute, []string{"c 1s", "b"}, "", false}, // a confirmation before it began counts for nothing
		{minute, []string{"b", "b"}, "", false},
		{minute, []string{"b", "c 59.999s"}, "already", false},
		{minute, []string{"b", "c 1s", "c 2s"}, "already", false},
		{minute, []string{"b", "c 1s", "x"}, "already", false},
		{minute, []string{"b", "c 1s", "b"}, "already", false},
		{minute, []string{"b", "x"}, "too late", true},
		{minute, []string{"b", "x", "c 1s"}, "too late", true},
		{minute, []string{"b", "x", "b"}, "too late", true},
		{minute, []string{"b", "c 60s"}, "too late", true}, // the timer has not run yet: the clock counts
		{minute, []string{"b", "c 2h"}, "too late", true},
	} {
		c := after(t, tt.limit, tt.events...)
		err := c.confirm(noon.Add(30 * time.Second))
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %q: a confirmation hears %v, want %q", tt.limit, tt.events, err, tt.says)
		}
		if got := c.expire(); got != tt.rollBack {
			t.Errorf("%s %q: rolled back %v, want %v", tt.limit, tt.events, got, tt.rollBack)
		}
		if got := c.open(); got != tt.rollBack {
			t.Errorf("%s %q: open %v, want %v", tt.limit, tt.events, got, tt.rollBack)
		}
	}
}

// What is shown counts down, never shows 0 while it can still be confirmed, and is gone after it.
func TestConfirmationIsShown(t *testing.T) {
	c := after(t, time.Minute, "b")
	for _, tt := range []struct {
		at   time.Duration
		left int
		says string
	}{{0, 60, "in 60 s unless"}, {20*time.Second - 1, 41, "in 41 s"}, {20 * time.Second, 40, "in 40 s"}, {time.Minute - 1, 1, "in 1 s"}, {time.Hour, 0, "in 0 s"}} {
		s, note := c.status(noon.Add(tt.at))
		if s == nil || s.SecondsLeft != tt.left || !strings.Contains(note, tt.says) || !strings.Contains(note, "`gatun confirm`") {
			t.Errorf("after %s: %+v %q, want %d %q", tt.at, s, note, tt.left, tt.says)
		}
		if s != nil && tt.at < time.Minute && !s.Until.Equal(noon.Add(time.Minute)) {
			t.Errorf("after %s: until %s", tt.at, s.Until)
		}
	}
	for _, events := range [][]string{nil, {"b", "c 1s"}, {"b", "x"}} {
		if s, note := after(t, time.Minute, events...).status(noon); s != nil || note != "" {
			t.Errorf("%q: %+v %q", events, s, note)
		}
	}
	var b bytes.Buffer
	s, _ := c.status(noon)
	if err := printStatus(&b, api.Status{Confirm: s}); err != nil || !strings.Contains(b.String(), "NOT CONFIRMED: everything is rolled back in 60 s unless `gatun confirm` comes") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestInWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Second: "1 s", 1500 * time.Millisecond: "1.5 s", 60 * time.Second: "60 s", 119 * time.Second: "119 s", 2 * time.Minute: "2m",
		150 * time.Second: "2m30s", time.Hour: "1h", 90 * time.Minute: "1h30m", 24 * time.Hour: "24h", 10 * time.Hour: "10h", time.Hour + 10*time.Second: "1h0m10s",
	} {
		if got := inWords(d); got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
	}
}

func TestConfirmationWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := &confirmation{limit: time.Minute}
		c.begin(began)
		err := c.wait(t.Context())
		if !errors.Is(err, errUnconfirmed) || err.Error() != "not confirmed within 60 s" || time.Since(began) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if err := c.wait(t.Context()); err != nil || time.Since(began) != time.Minute {
			t.Errorf("nothing waits any more: %v after %s", err, time.Since(began))
		}
	})
	synctest.Test(t, func(t *testing.T) { // confirmed while it waits
		c := &confirmation{limit: time.Minute}
		c.begin(time.Now())
		done := make(chan error, 1)
		go func() { done <- c.wait(t.Context()) }()
		synctest.Wait()
		time.Sleep(time.Minute - time.Nanosecond)
		if err := c.confirm(time.Now()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil || c.open() {
			t.Errorf("%v, open %v", err, c.open())
		}
	})
	synctest.Test(t, func(t *testing.T) { // another end comes first
		ctx, cancel := context.WithCancel(t.Context())
		c := &confirmation{limit: time.Minute}
		c.begin(time.Now())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		if err := c.wait(ctx); err != nil || time.Since(began) != time.Second || !c.open() {
			t.Errorf("%v after %s, open %v", err, time.Since(began), c.open())
		}
	})
	c := &confirmation{}
	c.begin(time.Now())
	if err := c.wait(t.Context()); err != nil {
		t.Errorf("without --confirm: %v", err)
	}
}

// What fails before it was confirmed is closed for the rest of the time and rolled back then; the
// exit code stays that of the failure.
func TestFailureIsRolledBackInTime(t *testing.T) {
	var talk bytes.Buffer
	c := &confirmation{limit: 50 * time.Millisecond, talk: &talk}
	c.begin(time.Now())
	began, downs := time.Now(), 0
	cause := exitStatus{exitConfig, config.Problems{{Message: "wrong"}}}
	err := c.rollBackAfter(t.Context(), cause, func(ctx context.Context) error {
		downs++
		return ctx.Err()
	})
	if exitCode(err) != exitConfig || !strings.HasSuffix(err.Error(), "wrong: rolled back") || downs != 1 || time.Since(began) < 45*time.Millisecond {
		t.Errorf("%v (%d), %d times down after %s", err, exitCode(err), downs, time.Since(began))
	}
	if !strings.Contains(talk.String(), "closed now") || !strings.Contains(talk.String(), "wrong") {
		t.Errorf("said %q", talk.String())
	}
	talk.Reset()
	if err := c.rollBackAfter(t.Context(), errUnconfirmed, func(context.Context) error { return errors.New("no way") }); !strings.Contains(err.Error(), "no way\nthe machine stays closed; open it with `gatun recover`") || exitCode(err) != exitFailed || talk.Len() > 0 {
		t.Errorf("%v, said %q", err, talk.String())
	}
}

// The person who waits may order it at once.
func TestRollBackIsOrdered(t *testing.T) {
	c := &confirmation{limit: time.Hour, talk: writerFunc(func(b []byte) (int, error) { // it listens to signals before it says so
		return len(b), syscall.Kill(os.Getpid(), syscall.SIGINT)
	})}
	c.begin(time.Now())
	err := c.rollBackAfter(t.Context(), errors.New("broken"), func(ctx context.Context) error { return ctx.Err() })
	if err == nil || err.Error() != "broken: rolled back" {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestConfirmCommand(t *testing.T) {
	s := newStation(t)
	s.want(1, "not started with `up --confirm`", "confirm")
	s.confirm.limit = time.Hour
	s.confirm.begin(time.Now())
	s.want(0, "NOT CONFIRMED: everything is rolled back in ", "status")
	s.want(0, "not confirmed yet", "status")
	got, _ := s.json("status")["confirm"].(map[string]any)
	until, err := time.Parse(time.RFC3339, got["until"].(string))
	if left := got["seconds_left"].(float64); err != nil || left < 3000 || left > 3600 || time.Until(until) > time.Hour || time.Until(until) < 50*time.Minute {
		t.Errorf("%v, %v", got, err)
	}
	if out := s.want(0, "confirmed: gatun stays up", "confirm"); out != "" {
		t.Errorf("talk on stdout: %q", out)
	}
	s.want(1, "it was confirmed already", "confirm")
	if got, there := s.json("status")["confirm"]; got != nil || !there {
		t.Errorf("after it: %v", got)
	}
	if out, _, _ := s.run("status"); strings.Contains(strings.ToLower(out), "confirm") {
		t.Errorf("after it:\n%s", out)
	}
	s.want(2, "", "confirm", "extra")
}

// run brings nothing up that could be rolled back.
func TestRunIsNotConfirmed(t *testing.T) {
	if err := (&run{}).Confirm(); !errors.Is(err, errNoConfirm) {
		t.Error(err)
	}
}

// Who watches the state learns of a confirmation, and not of one that changes nothing.
func TestConfirmationIsAnEvent(t *testing.T) {
	u := &up{log: zap.NewNop(), engine: &engine{table: network.NewTable(time.Now)}, confirm: &confirmation{limit: time.Hour}}
	w := u.engine.table.Watch(0)
	defer w.Close()
	if err := u.Confirm(); !errors.Is(err, errNoConfirm) || len(w.Events()) != 0 {
		t.Errorf("%v, %d events", err, len(w.Events()))
	}
	u.confirm.begin(time.Now())
	if err := u.Confirm(); err != nil || len(w.Events()) != 1 || (<-w.Events()).Type != network.EventState {
		t.Errorf("%v, %d events", err, len(w.Events()))
	}
	if err := u.Confirm(); err == nil || len(w.Events()) != 0 {
		t.Errorf("%v, %d events", err, len(w.Events()))
	}
}
