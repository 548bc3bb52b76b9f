package interception

import (
	"gatun/network"
)

// ask holds a flow until a person answers, the time is up, or a change of the policy decides
// it. gone is closed when the program gives up. The result is a verdict.
func (g *Gate) ask(gone <-chan struct{}, l *network.Link, d network.Decision) network.Decision {
	c := l.Comm()
	waiting, instead := g.Prompts.Hold(c, l.Flow, d, g.Firewall.Settings(c.Owner))
	if waiting == nil {
		return instead
	}
	defer waiting.Leave()
	for shown := false; ; shown = true {
		changed := g.Prompts.Changed()
		if d = g.Firewall.Decide(c, l.Flow); !d.Asks() {
			return d
		}
		if !shown {
			g.Table.Decide(l, d)
		}
		if answer, again := waiting.Wait(changed, gone); !again {
			return answer
		}
	}
}
