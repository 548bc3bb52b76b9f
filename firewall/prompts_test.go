package firewall

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

// asking is what the Gate does with a flow that is asked about, without the policy.
func asking(p *Prompts, c *network.Communication, to string, s *profiles.Settings, gone <-chan struct{}) network.Decision {
	d := network.Decision{Stage: network.StagePrompt, Code: "ask", Setting: "filter/endpoints", Rule: network.RuleRef{Text: "? *"}}
	w, instead := p.Hold(c, flow(packet.TCP, to), d, s)
	if w == nil {
		return instead
	}
	defer w.Leave()
	for {
		if d, again := w.Wait(p.Changed(), gone); !again {
			return d
		}
	}
}

func askFor(timeout time.Duration, action profiles.Action) *profiles.Settings {
	return &profiles.Settings{AskTimeout: timeout, DefaultAction: action}
}

func TestPromptIsAskedOncePerProgramAndRegistrableDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPrompts(time.Now)
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex
			got = map[network.Verdict]int{}
		)
		for i := range 12 {
			wg.Go(func() {
				c := comm([]string{"a.shop.co.uk", "b.shop.co.uk", "other.example"}[i%3], "198.51.100.1")
				d := asking(p, c, fmt.Sprintf("198.51.100.%d:443", i+1), askFor(time.Minute, profiles.Allow), nil)
				mu.Lock()
				defer mu.Unlock()
				got[d.Verdict]++
			})
		}
		synctest.Wait()
		list := p.List()
		if len(list) != 2 {
			t.Fatalf("%d prompts, want 2: %+v", len(list), list)
		}
		for _, i := range list {
			want, names := 8, 2
			if i.Domain != "shop.co.uk" {
				want, names = 4, 1
			}
			if i.State != "waiting" || i.Flows != want || len(i.Names) != names || len(i.Remotes) != want || i.Default != "accept" || i.Program != "curl" {
				t.Errorf("%+v", i)
			}
			action := profiles.Allow
			if i.Domain != "shop.co.uk" {
				action = profiles.Block
			}
			if err := p.Answer(i.ID, Answer{Action: action, By: "root"}); err != nil {
				t.Error(err)
			}
			if err := p.Answer(i.ID, Answer{Action: action}); !errors.Is(err, ErrNoPrompt) {
				t.Errorf("answered twice: %v", err)
			}
		}
		wg.Wait()
		if got[network.Accept] != 8 || got[network.Block] != 4 || len(p.List()) != 0 || p.held != 0 {
			t.Errorf("%v, %d listed, %d held", got, len(p.List()), p.held)
		}
	})
}

// The time-out applies the default once, and the question stays listed.
func TestPromptTimesOut(t *testing.T) {
	for _, tt := range []struct {
		action    profiles.Action
		direction network.Direction
		want      network.Verdict
	}{
		{profiles.Allow, network.Outbound, network.Accept},
		{profiles.Block, network.Outbound, network.Block},
		{profiles.Ask, network.Outbound, network.Block},
		{profiles.Allow, network.Inbound, network.Drop},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := NewPrompts(time.Now)
			c := comm("", "198.51.100.1")
			c.Direction = tt.direction
			start := time.Now()
			d := asking(p, c, "198.51.100.1:443", askFor(60*time.Second, tt.action), nil)
			if d.Verdict != tt.want || d.Code != "prompt-timeout" || d.Stage != network.StagePrompt || time.Since(start) != 60*time.Second {
				t.Errorf("%v after %s: %+v", tt.action, time.Since(start), d)
			}
			list := p.List()
			if len(list) != 1 || list[0].State != "unanswered" || list[0].Flows != 0 || list[0].Scope != "Internet" || list[0].Domain != "" {
				t.Fatalf("%+v", list)
			}
			done := make(chan network.Decision)
			go func() { done <- asking(p, c, "198.51.100.2:443", askFor(60*time.Second, tt.action), nil) }()
			synctest.Wait()
			if again := p.List(); len(again) != 1 || again[0].ID != list[0].ID || again[0].State != "waiting" {
				t.Errorf("the question did not come back: %+v", again)
			}
			if err := p.Answer(list[0].ID, Answer{Action: profiles.Allow, By: "root"}); err != nil {
				t.Error(err)
			}
			if d := <-done; d.Verdict != network.Accept || !strings.Contains(d.Reason, "root") {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestPromptEndsWithTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPrompts(time.Now)
		gone := make(chan struct{})
		time.AfterFunc(3*time.Second, func() { close(gone) })
		d := asking(p, comm("a.example", "198.51.100.1"), "198.51.100.1:443", askFor(time.Minute, profiles.Allow), gone)
		if d.Verdict != network.Drop || d.Code != "program-gone" {
			t.Errorf("%+v", d)
		}
	})
}

// An answer that lasts is a rule first; a rule that cannot be made leaves the question open.
func TestPromptAnswerIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPrompts(time.Now)
		refusal := errors.New("pinned")
		var asked []string
		p.Remember = func(i PromptInfo, a Answer) error {
			asked = append(asked, a.For.String()+fmt.Sprint(i.Entities()))
			return refusal
		}
		done := make(chan network.Decision, 2)
		go func() {
			done <- asking(p, comm("", "198.51.100.1"), "198.51.100.1:443", askFor(time.Minute, profiles.Block), nil)
		}()
		go func() {
			done <- asking(p, comm("", "198.51.100.9"), "198.51.100.9:443", askFor(time.Minute, profiles.Block), nil)
		}()
		synctest.Wait()
		id := p.List()[0].ID
		if err := p.Answer(id, Answer{Action: profiles.Allow, For: Lasting{Always: true}}); !errors.Is(err, refusal) {
			t.Errorf("got %v", err)
		}
		if len(p.List()) != 1 {
			t.Error("the question is gone")
		}
		refusal = nil
		if err := p.Answer(id, Answer{Action: profiles.Allow, For: Lasting{Time: 10 * time.Minute}}); err != nil {
			t.Error(err)
		}
		if d := <-done; d.Verdict != network.Accept {
			t.Errorf("%+v", d)
		}
		<-done
		want := []string{"always[198.51.100.1 198.51.100.9]", "10m0s[198.51.100.1 198.51.100.9]"}
		for i := range want {
			if a, b := want[i], strings.Replace(want[i], "1 198.51.100.9", "9 198.51.100.1", 1); asked[i] != a && asked[i] != b {
				t.Errorf("remembered %q, want %q", asked[i], a)
			}
		}
	})
}

// Nobody can fill the memory, or the stack, with questions.
func TestPromptLimits(t *testing.T) {
	p := NewPrompts(time.Now)
	s := askFor(time.Minute, profiles.Allow)
	ask := network.Decision{Stage: network.StagePrompt}
	var held []*Waiting
	for range maxHeld {
		w, _ := p.Hold(comm("a.example", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443"), ask, s)
		if w == nil {
			t.Fatalf("refused after %d", len(held))
		}
		held = append(held, w)
	}
	w, d := p.Hold(comm("a.example", "198.51.100.1"), flow(packet.TCP, "198.51.100.1:443"), ask, s)
	if w != nil || d.Verdict != network.Accept || d.Code != "prompt-limit" {
		t.Fatalf("%+v", d)
	}
	for _, w := range held {
		w.Leave()
	}
	for i := range 2 * maxOpen {
		c := comm(fmt.Sprintf("host%d.example", i), "198.51.100.1")
		w, _ := p.Hold(c, flow(packet.TCP, "198.51.100.1:443"), ask, s)
		if w == nil {
			t.Fatalf("an unanswered prompt did not make way at %d", i)
		}
		w.Leave()
	}
	if n := len(p.List()); n > maxOpen {
		t.Errorf("%d are listed", n)
	}
	if i := p.List()[0]; len(i.Remotes) > maxRemembered || len(i.Names) > maxRemembered {
		t.Errorf("%d remotes, %d names", len(i.Remotes), len(i.Names))
	}
}
