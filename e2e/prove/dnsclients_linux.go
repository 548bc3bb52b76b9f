package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// dnsClient is a program that resolves names and that somebody else wrote. Those with a server
// are told whom to ask; the others read resolv.conf.
type dnsClient struct {
	name    string
	process string // how gatun lists it: the beginning of the binary's name
	command func(c lookup) []string
}

// lookup is one thing to resolve.
type lookup struct {
	name, server string
	six          bool // the AAAA record, asked over IPv6
}

func (c lookup) pick(four, six string) string {
	if c.six {
		return six
	}
	return four
}

func (w *dnsWorld) clients(musl, cgo string) []dnsClient {
	typ := func(c lookup) string { return c.pick("A", "AAAA") }
	list := []dnsClient{
		{"dig", "dig", func(c lookup) []string { return []string{"dig", "+tries=1", "+short", "@" + c.server, c.name, typ(c)} }},
		{"dig-tcp", "dig", func(c lookup) []string {
			return []string{"dig", "+tries=1", "+short", "+tcp", "@" + c.server, c.name, typ(c)}
		}},
		{"kdig", "kdig", func(c lookup) []string { return []string{"kdig", "+short", "@" + c.server, c.name, typ(c)} }},
		{"kdig-tcp", "kdig", func(c lookup) []string { return []string{"kdig", "+short", "+tcp", "@" + c.server, c.name, typ(c)} }},
		{"drill", "drill", func(c lookup) []string { return []string{"drill", "@" + c.server, c.name, typ(c)} }},
		{"drill-tcp", "drill", func(c lookup) []string { return []string{"drill", "-t", "@" + c.server, c.name, typ(c)} }},
		{"glibc", "getent", func(c lookup) []string { return []string{"getent", "ahosts" + c.pick("v4", "v6"), c.name} }},
		{"musl", "lookup", func(c lookup) []string { return []string{musl, c.pick("4", "6"), c.name} }},
		{"go", "peer", func(c lookup) []string { return []string{w.Bins.Peer, "lookup", c.pick("ip4", "ip6"), c.name} }},
		{"python", "python3", func(c lookup) []string {
			const code = "import socket,sys; print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80, getattr(socket, sys.argv[2]))})"
			return []string{"/usr/bin/python3", "-c", code, c.name, c.pick("AF_INET", "AF_INET6")}
		}},
	}
	if cgo != "" {
		list = append(list, dnsClient{"go-cgo", "peer-cgo", func(c lookup) []string {
			return []string{"env", "GODEBUG=netdns=cgo", cgo, "lookup", c.pick("ip4", "ip6"), c.name}
		}})
	}
	return list
}

// proveDNSClients resolves with each client, in both modes and over both families, and looks for
// the query in gatun's list with the program's name. A name that the policy denies must not be
// resolved by any of them: else the client did not ask gatun.
func proveDNSClients(b *bench) (err error) {
	w, err := b.dnsWorld("unbound")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	musl, cgo, err := b.buildClients(w)
	if err != nil {
		return err
	}
	text := strings.Replace(upstreams(w.peers["unbound"].url("dns")), "defaultAction: permit", `defaultAction: permit, endpoints: ["- .deny.wild.kinds.example"]`, 1)
	for _, mode := range []string{"up", "run"} {
		g, err := started(w.Lab, mode, text)
		if err != nil {
			return err
		}
		if err := b.allClients(w, g, w.clients(musl, cgo)); err != nil {
			return err
		}
		if !b.small {
			if err := b.resolved(w, g); err != nil {
				return err
			}
		}
		if _, err := g.Down(); err != nil {
			return err
		}
	}
	return nil
}

// buildClients links the small program with musl, and the helper with the libc's resolver.
func (b *bench) buildClients(w *dnsWorld) (musl, cgo string, err error) {
	source, err := dnsZones.ReadFile("testdata/dns/lookup.c")
	if err != nil {
		return "", "", err
	}
	if err := w.write("lookup.c", string(source)); err != nil {
		return "", "", err
	}
	musl = filepath.Join(w.dir, "lookup")
	if out, err := exec.Command("musl-gcc", "-static", "-O1", "-o", musl, filepath.Join(w.dir, "lookup.c")).CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("musl-gcc: %w: %s", err, out)
	}
	if b.small {
		return musl, "", nil
	}
	root, err := lab.Root()
	if err != nil {
		return "", "", err
	}
	cgo = filepath.Join(w.dir, "peer-cgo")
	build := exec.Command("go", "build", "-o", cgo, "./e2e/peer")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("the helper with cgo: %w: %s", err, out)
	}
	return musl, cgo, nil
}

// allClients lets every client resolve a name of its own, and one that is denied.
func (b *bench) allClients(w *dnsWorld, g *lab.Gatun, clients []dnsClient) error {
	answered, denied, listed, tries := 0, 0, 0, 0
	var wrong []string
	var names []lookup
	for _, six := range []bool{false, true} {
		c := lookup{six: six}
		p := w.peers["unbound"]
		c.server = c.pick(p.addr4(), p.addr6())
		if err := os.WriteFile(filepath.Join("/etc/netns", string(w.Host), "resolv.conf"), []byte("nameserver "+c.server+"\noptions timeout:2 attempts:1\n"), 0o644); err != nil {
			return err
		}
		for _, client := range clients {
			tries++
			c.name = fmt.Sprintf("%s-%s-%s.wild.kinds.example", client.name, g.Mode, c.pick("v4", "v6"))
			names = append(names, c)
			if got, said := w.resolve(g, client, c); got {
				answered++
			} else {
				wrong = append(wrong, c.name+" "+said)
			}
			c.name = fmt.Sprintf("%s-%s.deny.wild.kinds.example", client.name, c.pick("v4", "v6"))
			if got, _ := w.resolve(g, client, c); !got {
				denied++
			}
		}
	}
	flows, err := g.Flows()
	if err != nil {
		return err
	}
	for i, c := range names {
		if process := clients[i%len(clients)].process; listedAs(flows, c.name, process) {
			listed++
		} else {
			wrong = append(wrong, "not listed as "+process+": "+c.name)
		}
	}
	b.exactly(g.Mode+": clients x families that resolved", float64(answered), float64(tries))
	b.exactly(g.Mode+": of them listed with the program's name", float64(listed), float64(tries))
	b.exactly(g.Mode+": control: denied names that were not resolved", float64(denied), float64(tries))
	for _, line := range wrong {
		b.note(g.Mode+": wrong", oneLine(line))
	}
	return nil
}

func (w *dnsWorld) resolve(g *lab.Gatun, client dnsClient, c lookup) (ok bool, said string) {
	r, err := g.Exec(client.command(c)...)
	if err != nil {
		return false, err.Error()
	}
	return strings.Contains(r.Data, c.pick(lab.Server4, lab.Server6)), r.Data + r.Error
}

func listedAs(flows []lab.Flow, name, process string) bool {
	for _, f := range flows {
		if f.Field("kind") == "dns" && f.Field("domain") == name && strings.HasPrefix(filepath.Base(f.Field("process.path")), process) {
			return true
		}
	}
	return false
}

// resolved runs systemd-resolved out of an unpacked package as the machine's stub, and resolves
// over it. It is never installed: its package would replace /etc/resolv.conf.
func (b *bench) resolved(w *dnsWorld, g *lab.Gatun) error {
	if g.Mode != "up" {
		return nil // a stub of the host is not reachable from a command in namespaces of its own
	}
	path, err := w.unpackResolved()
	if err != nil {
		b.figure("systemd-resolved", err.Error(), false)
		return nil
	}
	const begin = `mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d && chown 991:991 /run/systemd/resolve &&
printf '[Resolve]\nDNS=198.51.100.61\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\nCache=no\n' > /run/systemd/resolved.conf.d/lab.conf && exec "$0"`
	p, err := w.Start(w.Host, lab.Spec{}, "sh", "-c", begin, path)
	if err != nil {
		return err
	}
	defer p.Kill()
	if err := lab.Wait(30*time.Second, "systemd-resolved listens", func() (bool, error) {
		out, err := w.Host.Output("sh", "-c", "cat /proc/net/udp")
		return strings.Contains(out, " 3500007F:0035 "), err
	}); err != nil {
		text, _ := os.ReadFile(p.Log)
		return fmt.Errorf("%w: %s", err, text)
	}
	return b.overStub(w, g)
}

// overStub asks the stub: a name that is permitted is resolved, a denied one is not, and the
// queries are listed as dig's, because loopback is intercepted.
func (b *bench) overStub(w *dnsWorld, g *lab.Gatun) error {
	dig := func(name string) (string, error) {
		r, err := g.Exec("dig", "+tries=1", "+time=4", "+short", "@127.0.0.53", name)
		return strings.TrimSpace(r.Data), err
	}
	good, err := dig("stub.wild.kinds.example")
	if err != nil {
		return err
	}
	bad, err := dig("stub.deny.wild.kinds.example")
	if err != nil {
		return err
	}
	flows, err := g.Flows()
	if err != nil {
		return err
	}
	b.figure("over systemd-resolved's stub", oneLine(good), good == lab.Server4)
	b.figure("over the stub, a denied name", oneLine(bad), !strings.Contains(bad, lab.Server4))
	asDig, asStub := listedAs(flows, "stub.wild.kinds.example", "dig"), listedAs(flows, "stub.wild.kinds.example", "systemd-resolve")
	b.figure("over the stub: listed as dig's, as systemd-resolved's", fmt.Sprint(asDig, ", ", asStub), asDig && !asStub)
	return nil
}

// unpackResolved fetches the package and unpacks it. The accounts that it wants exist only for
// the programs of the lab's host.
func (w *dnsWorld) unpackResolved() (string, error) {
	dir := filepath.Join(w.dir, "resolved")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, script := range []string{
		"apt-get download -q systemd-resolved", "dpkg -x systemd-resolved_*.deb .",
		"(cat /etc/passwd; echo systemd-resolve:x:991:991::/:/usr/sbin/nologin) > /etc/netns/" + string(w.Host) + "/passwd",
		"(cat /etc/group; echo systemd-resolve:x:991:) > /etc/netns/" + string(w.Host) + "/group",
	} {
		cmd := exec.CommandContext(ctx, "sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", script, err, out)
		}
	}
	return filepath.Join(dir, "lib/systemd/systemd-resolved"), nil
}
