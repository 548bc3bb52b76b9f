//go:build !linux

package route

import (
	"context"

	"gatun/network/packet"

	"go.uber.org/zap"
)

// The OS ports of systems whose routes gatun does not change yet: each says so. Their plans
// are computed and tested (ComputeDarwin, ComputeWindows).

func lock(string) (func(), error)                                 { return nil, ErrUnsupported }
func syncDir(string) error                                        { return nil }
func readHost() (HostState, error)                                { return HostState{}, ErrUnsupported }
func foreignTable(Names) error                                    { return ErrUnsupported }
func tableExists(string) (bool, error)                            { return false, ErrUnsupported }
func installGuard(Guard, []packet.Flow) error                     { return ErrUnsupported }
func verifyGuard(Guard) error                                     { return ErrUnsupported }
func removeGuard(string) error                                    { return ErrUnsupported }
func readFlows(string) ([]packet.Flow, error)                     { return nil, ErrUnsupported }
func changeFlows(string, []packet.Flow, []packet.Flow) error      { return ErrUnsupported }
func openFlows(...packet.Proto) (map[packet.Flow]struct{}, error) { return nil, ErrUnsupported }
func forgetHandedBack(Names) error                                { return ErrUnsupported }
func queueMode(Names) (InboundMode, error)                        { return InboundFree, ErrUnsupported }
func getSysctl(string) (string, error)                            { return "", ErrUnsupported }
func setSysctl(string, string) error                              { return ErrUnsupported }
func restoreSysctl(sysctlRecord) error                            { return ErrUnsupported }
func setupLink(LinkSetup) error                                   { return ErrUnsupported }
func linkReady(LinkSetup) bool                                    { return false }
func addRoute(Names, Route) error                                 { return ErrUnsupported }
func addRule(Names, Rule) error                                   { return ErrUnsupported }
func syncRoutes(Names, []Route) ([]string, error)                 { return nil, ErrUnsupported }
func syncRules(Names, []Rule) (changes, conflicts []string, err error) {
	return nil, nil, ErrUnsupported
}
func sweep(Names) error            { return ErrUnsupported }
func sweepRoutes(Names, int) error { return ErrUnsupported }
func watch(context.Context, Names, chan<- change, *zap.Logger) error {
	return ErrUnsupported
}
