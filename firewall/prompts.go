package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"gatun/attribution"
	"gatun/network"
	"gatun/network/packet"
	"gatun/profiles"
)

const (
	maxHeld       = 8192 // flows that wait for a person; a quarter of what the stack can hold
	maxOpen       = 1024 // prompts that are listed, waiting and unanswered ones
	maxRemembered = 64   // names and addresses of one prompt that are shown and remembered
)

// ErrNoPrompt says that no prompt has that ID: it was answered, or nothing waits any more.
var ErrNoPrompt = errors.New("no such prompt: it was answered already, or never asked; see `gatun prompt`")

// Prompts are the questions that wait for a person: one per program and registrable domain, or
// scope where no name is known. Its methods may be called from any goroutine; only Waiting.Wait
// blocks.
type Prompts struct {
	// Remember keeps an answer that lasts, as a rule. Its error is the answerer's, and the
	// prompt stays open. cmd sets it before the first flow.
	Remember func(PromptInfo, Answer) error
	Clock    func() time.Time

	mu      sync.Mutex
	nextID  uint64
	held    int
	byKey   map[promptKey]*prompt
	changed chan struct{} // closed when the policy changes, then replaced
}

// NewPrompts returns no prompts.
func NewPrompts(clock func() time.Time) *Prompts {
	return &Prompts{Clock: clock, byKey: map[promptKey]*prompt{}, changed: make(chan struct{})}
}

// Answer is what a person said.
type Answer struct {
	Action profiles.Action // Allow; everything else blocks
	For    Lasting
	By     string // who said it, for "why"
}

// Lasting says for how long an answer holds. The zero value is once: the flows that wait.
type Lasting struct {
	Always, UntilExit bool
	Time              time.Duration
}

// Once reports whether the answer holds for the flows that wait only.
func (l Lasting) Once() bool { return l == Lasting{} }

// String formats l as people write it: once, always, exit or a duration.
func (l Lasting) String() string {
	switch {
	case l.Always:
		return "always"
	case l.UntilExit:
		return "exit"
	case l.Time > 0:
		return l.Time.String()
	default:
		return "once"
	}
}

// promptKey is what a person is asked about once.
type promptKey struct {
	path      string
	kind      attribution.Kind
	direction network.Direction
	domain    string // registrable
	scope     network.Scope
}

// prompt is one question. All fields are guarded by Prompts.mu, but for answered, which is
// closed after decision was set.
type prompt struct {
	id       string
	key      promptKey
	info     PromptInfo
	waiting  int
	answered chan struct{}
	decision network.Decision
}

// PromptInfo is a prompt as JSON.
type PromptInfo struct {
	ID        string    `json:"id"`
	State     string    `json:"state"` // waiting, unanswered
	Program   string    `json:"program"`
	Path      string    `json:"path"`
	PID       int       `json:"pid"` // of the process that asked first
	Start     time.Time `json:"start"`
	User      string    `json:"user"`
	Profile   string    `json:"profile"`
	Direction string    `json:"direction"`
	Domain    string    `json:"domain"` // registrable; "" where only the scope is known
	Scope     string    `json:"scope"`
	Names     []string  `json:"names"`   // the full names
	Remotes   []string  `json:"remotes"` // ADDRESS:PORT/PROTO
	Setting   string    `json:"setting"`
	Rule      string    `json:"rule"`
	Flows     int       `json:"flows"` // that wait now
	Asked     time.Time `json:"asked"`
	Until     time.Time `json:"until"`   // when the last of them gets the default
	Default   string    `json:"default"` // what happens then: accept, block, drop

	addrs []netip.Addr
}

// Entities returns what a rule must name to hold for what was asked: the registrable domain,
// else each address. A scope would permit far more than was asked.
func (i PromptInfo) Entities() []string {
	if i.Domain != "" {
		return []string{"." + i.Domain}
	}
	list := make([]string, len(i.addrs))
	for n, a := range i.addrs {
		list[n] = a.String()
	}
	return list
}

// Waiting is one flow that waits.
type Waiting struct {
	prompts  *Prompts
	prompt   *prompt
	deadline time.Time
	fallback network.Decision
}

// Hold opens a prompt for a flow, or joins the one that is open. Where too many flows wait
// already it returns nil and the decision that holds instead.
func (p *Prompts) Hold(c *network.Communication, f packet.Flow, d network.Decision, s *profiles.Settings) (*Waiting, network.Decision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fallback := timeoutDecision(d, c.Direction, s)
	k := keyOfPrompt(c, f)
	q := p.byKey[k]
	if p.held >= maxHeld || q == nil && !p.room() {
		fallback.Code, fallback.Reason = "prompt-limit", "too many connections wait for an answer: the default action applies"
		return nil, fallback
	}
	now := p.Clock()
	if q == nil {
		p.nextID++
		q = &prompt{id: strconv.FormatUint(p.nextID, 10), key: k, answered: make(chan struct{})}
		q.info = firstInfo(q.id, k, c, d, now)
		p.byKey[k] = q
	}
	w := &Waiting{prompts: p, prompt: q, deadline: now.Add(s.AskTimeout), fallback: fallback}
	q.waiting++
	p.held++
	q.info.Default = fallback.Verdict.String()
	q.info.Until = later(q.info.Until, w.deadline)
	q.note(c, f)
	return w, network.Decision{}
}

// room reports whether another prompt may be listed; the oldest unanswered one makes way.
func (p *Prompts) room() bool {
	if len(p.byKey) < maxOpen {
		return true
	}
	var oldest *prompt
	for _, q := range p.byKey {
		if q.waiting == 0 && (oldest == nil || q.info.Asked.Before(oldest.info.Asked)) {
			oldest = q
		}
	}
	if oldest != nil {
		delete(p.byKey, oldest.key)
	}
	return oldest != nil
}

func keyOfPrompt(c *network.Communication, f packet.Flow) promptKey {
	k := promptKey{path: c.Owner.Process.Path, kind: c.Owner.Process.Kind, direction: c.Direction}
	if c.Entity.Domain != "" {
		k.domain = registrable(c.Entity.Domain)
	} else {
		k.scope = network.ScopeOf(f.Remote.Addr())
	}
	return k
}

func firstInfo(id string, k promptKey, c *network.Communication, d network.Decision, now time.Time) PromptInfo {
	p := c.Owner.Process
	return PromptInfo{
		ID: id, Program: p.Name, Path: p.Path, PID: p.PID, Start: p.Started.UTC(), User: p.User, Profile: c.Profile,
		Direction: c.Direction.String(), Domain: k.domain, Scope: k.scope.String(), Names: []string{}, Remotes: []string{},
		Setting: d.Setting, Rule: d.Rule.Text, Asked: now.UTC(),
	}
}

// note adds what this flow asks for to what a person is shown.
func (q *prompt) note(c *network.Communication, f packet.Flow) {
	q.info.Names = appendNew(q.info.Names, c.Entity.Domain)
	q.info.Remotes = appendNew(q.info.Remotes, f.Remote.String()+"/"+f.Proto.String())
	if a := f.Remote.Addr(); len(q.info.addrs) < maxRemembered && !slices.Contains(q.info.addrs, a) {
		q.info.addrs = append(q.info.addrs, a)
	}
}

// appendNew copies: snapshots of the list are read without the lock.
func appendNew(list []string, s string) []string {
	if s == "" || len(list) >= maxRemembered || slices.Contains(list, s) {
		return list
	}
	return append(slices.Clone(list), s)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b.UTC()
}

// timeoutDecision is the default action, once: nobody is asked again for this flow.
func timeoutDecision(d network.Decision, dir network.Direction, s *profiles.Settings) network.Decision {
	t := network.Decision{
		Verdict: network.Block, Stage: network.StagePrompt, Code: "prompt-timeout", Setting: "filter/defaultAction",
		Profile: s.DefaultActionProfile, Rule: d.Rule, Reason: fmt.Sprintf("nobody answered within %s: the default action applies once", s.AskTimeout),
	}
	switch {
	case dir == network.Inbound:
		t.Verdict = network.Drop
	case s.DefaultAction == profiles.Allow:
		t.Verdict = network.Accept
	}
	return t
}

// Wait blocks until somebody answers, the time is up, or one of the channels is closed: changed,
// taken from Changed before the flow was decided last, or gone, when the program gave up. It
// returns the decision; again says that the policy changed and the flow is to be decided again.
func (w *Waiting) Wait(changed, gone <-chan struct{}) (d network.Decision, again bool) {
	timer := time.NewTimer(w.deadline.Sub(w.prompts.Clock()))
	defer timer.Stop()
	select {
	case <-w.prompt.answered:
		return w.prompt.decision, false
	case <-changed:
		return network.Decision{}, true
	case <-gone:
		d = w.fallback
		d.Verdict, d.Code, d.Reason = network.Drop, "program-gone", "the program gave up before anybody answered"
		return d, false
	case <-timer.C:
		return w.fallback, false
	}
}

// Leave ends the wait. The last flow leaves an unanswered prompt behind, which stays listed.
func (w *Waiting) Leave() {
	w.prompts.mu.Lock()
	defer w.prompts.mu.Unlock()
	w.prompt.waiting--
	w.prompts.held--
}

// Changed returns a channel that is closed when the policy changes next.
func (p *Prompts) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// PolicyChanged lets every flow that waits be decided again.
func (p *Prompts) PolicyChanged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// List returns the prompts, oldest first, the unanswered ones too.
func (p *Prompts) List() []PromptInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]PromptInfo, 0, len(p.byKey))
	for _, q := range p.byKey {
		list = append(list, q.snapshot())
	}
	slices.SortFunc(list, func(a, b PromptInfo) int { return a.Asked.Compare(b.Asked) })
	return list
}

func (q *prompt) snapshot() PromptInfo {
	i := q.info
	i.Flows, i.State = q.waiting, "unanswered"
	if q.waiting > 0 {
		i.State = "waiting"
	}
	i.addrs = slices.Clone(i.addrs)
	return i
}

// Answer answers a prompt: the flows that wait get the decision, and an answer that lasts is
// remembered first. The error of remembering leaves the prompt open.
func (p *Prompts) Answer(id string, a Answer) error {
	p.mu.Lock()
	q := p.find(id)
	var info PromptInfo
	if q != nil {
		info = q.snapshot()
	}
	p.mu.Unlock()
	if q == nil {
		return ErrNoPrompt
	}
	if !a.For.Once() {
		if err := p.Remember(info, a); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byKey[q.key] != q {
		return nil // somebody else answered meanwhile
	}
	q.decision = answerDecision(info, a)
	delete(p.byKey, q.key)
	close(q.answered)
	return nil
}

func (p *Prompts) find(id string) *prompt {
	for _, q := range p.byKey {
		if q.id == id {
			return q
		}
	}
	return nil
}

func answerDecision(i PromptInfo, a Answer) network.Decision {
	d := network.Decision{
		Verdict: network.Block, Stage: network.StagePrompt, Code: "prompt-answer", Setting: i.Setting,
		Rule: network.RuleRef{Text: i.Rule}, Reason: fmt.Sprintf("blocked by %s (%s)", a.By, a.For),
	}
	switch {
	case a.Action == profiles.Allow:
		d.Verdict, d.Reason = network.Accept, fmt.Sprintf("allowed by %s (%s)", a.By, a.For)
	case i.Direction == network.Inbound.String():
		d.Verdict = network.Drop
	}
	return d
}
