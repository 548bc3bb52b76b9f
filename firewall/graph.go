package firewall

import "gatun/network"

// DeciderInfo describes one entry of the list of deciders, for the graph in the documentation.
type DeciderInfo struct {
	Number  int    // of policy.md section 4
	Name    string // as "why" prints it
	Setting string // what a person turns to change it; "" if nothing
	Results string // what it may say; "" if it only notes something
	Stages  []network.Stage
}

// Deciders returns the list in its order, which is the policy.
func Deciders() []DeciderInfo {
	var list []DeciderInfo
	for _, d := range deciders() {
		i := DeciderInfo{Number: d.number, Name: d.name, Setting: d.setting, Results: d.results}
		for _, st := range []network.Stage{network.StageBeforeIntel, network.StageAfterIntel, network.StageCommunication, network.StageLink} {
			if d.stages.has(st) {
				i.Stages = append(i.Stages, st)
			}
		}
		list = append(list, i)
	}
	return list
}
