package attribution

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"time"

	gopsnet "github.com/shirou/gopsutil/v3/net"
	gopsprocess "github.com/shirou/gopsutil/v3/process"

	"gatun/network/packet"
)

// findPortable names the owner by listing all connections of the system. It is slow (tens of
// milliseconds) and the only source where the system has no look-up of one socket.
func (f *Finder) findPortable(ctx context.Context, flow packet.Flow) Owner {
	kind := ""
	switch flow.Proto {
	case packet.TCP:
		kind = "tcp"
	case packet.UDP:
		kind = "udp"
	default:
		return Unidentified(CauseNoSocket) // no system lists raw sockets by this way
	}
	connections, err := gopsnet.ConnectionsWithContext(ctx, kind)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(ctx.Err(), context.Canceled) {
			return Unidentified(CauseTimeout)
		}
		return f.failed(err)
	}
	pids := pidsOf(flow, connections)
	switch {
	case len(pids) == 0:
		return Unidentified(CauseNoSocket)
	case len(pids) > 1:
		return ambiguous(CauseShared)
	case pids[0] == 0:
		return Unidentified(CauseNoHolder)
	}
	process := portableFacts(ctx, pids[0])
	// The table and the facts were read at different times: the PID must not have changed
	// hands in between.
	if process == nil || !process.Started.Before(time.Now()) {
		return Unidentified(CauseEnded)
	}
	return single(&image{process: process}, f.self)
}

// pidsOf returns the different processes that the list names for the flow's socket, 0 for a
// socket without one.
func pidsOf(flow packet.Flow, connections []gopsnet.ConnectionStat) []int32 {
	var pids []int32
	for _, c := range connections {
		local, remote := addrPort(c.Laddr), addrPort(c.Raddr)
		if !matches(flow, local, remote, c.Status) {
			continue
		}
		known := false
		for _, pid := range pids {
			known = known || pid == c.Pid
		}
		if !known {
			pids = append(pids, c.Pid)
		}
	}
	return pids
}

// matches reports whether a socket with these addresses may have sent the flow's packets.
func matches(flow packet.Flow, local, remote netip.AddrPort, status string) bool {
	if local.Port() != flow.Local.Port() || status == "LISTEN" {
		return false
	}
	if flow.Proto == packet.TCP {
		return local == flow.Local && remote == flow.Remote
	}
	if local.Addr().IsValid() && !local.Addr().IsUnspecified() && local.Addr() != flow.Local.Addr() {
		return false
	}
	connected := remote.Port() != 0
	return !connected || remote == flow.Remote
}

func addrPort(a gopsnet.Addr) netip.AddrPort {
	ip, err := netip.ParseAddr(a.IP)
	if err != nil {
		ip = netip.Addr{} // "*", or nothing
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(a.Port))
}

// portableFacts takes the facts of a process, nil if it has ended.
func portableFacts(ctx context.Context, pid int32) *Process {
	p, err := gopsprocess.NewProcessWithContext(ctx, pid)
	if err != nil {
		return nil
	}
	milliseconds, err := p.CreateTimeWithContext(ctx)
	if err != nil {
		return nil
	}
	facts := &Process{PID: int(pid), Started: time.UnixMilli(milliseconds), Kind: KindProgram}
	// What cannot be read stays empty; only the binary identifies a program.
	facts.Path, _ = p.ExeWithContext(ctx)
	facts.Args, _ = p.CmdlineSliceWithContext(ctx)
	facts.User, _ = p.UsernameWithContext(ctx)
	if name, err := p.NameWithContext(ctx); err == nil {
		facts.Name = name
	}
	if facts.Path != "" {
		facts.Name = filepath.Base(facts.Path)
	}
	if parent, err := p.PpidWithContext(ctx); err == nil {
		facts.Parent = int(parent)
	}
	if uids, err := p.UidsWithContext(ctx); err == nil && len(uids) > 1 {
		facts.UID = uint32(uids[1])
	}
	return facts
}

// portableEnviron is Finder.Environ for systems without a better source.
func portableEnviron(p *Process) []string {
	q, err := gopsprocess.NewProcess(int32(p.PID))
	if err != nil {
		return nil
	}
	environ, err := q.Environ()
	if err != nil || !portableAlive(p.PID, p.Started) {
		return nil
	}
	return environ
}

// portableAlive is Finder.Alive for systems without a better source.
func portableAlive(pid int, started time.Time) bool {
	q, err := gopsprocess.NewProcess(int32(pid))
	if err != nil {
		return false
	}
	milliseconds, err := q.CreateTime()
	return err == nil && time.UnixMilli(milliseconds).Equal(started)
}
