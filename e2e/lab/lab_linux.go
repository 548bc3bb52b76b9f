package lab

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The addresses of the lab. All of them count as Internet for gatun; Dead is an address of the
// server's network that nobody has.
const (
	Host4, Host6         = "192.0.2.2", "2001:db8:1::2"
	Twin4, Twin6         = "192.0.2.3", "2001:db8:1::3"
	Gateway4, Gateway6   = "192.0.2.1", "2001:db8:1::1"
	Server4, Server6     = "198.51.100.10", "2001:db8:2::10"
	Second4, Second6     = "198.51.100.11", "2001:db8:2::11" // the server again, for rules by address
	Resolver4, Resolver6 = "198.51.100.53", "2001:db8:2::53"
	Dead4, Dead6         = "198.51.100.99", "2001:db8:2::99"
	Far4, Far6           = "203.0.113.10", "2001:db8:3::10"
	Many4                = "198.18.0.0/20" // every address answers on UDP port 6000: for many (socket, peer) pairs
)

// Options are the choices of a lab. The zero value is the full lab with counters.
type Options struct {
	Bins    Binaries
	Dir     string // where logs, certificates and state go; must be searchable by everybody
	NoCount bool   // no counters on the router: for benchmarks
	LateV6  bool   // the host starts without an IPv6 address and route: they come by advertisement
}

// Lab is one network. Several may exist at once.
type Lab struct {
	Dir    string
	Bins   Binaries
	Host   Namespace
	Twin   Namespace
	Router Namespace
	Server Namespace
	Far    Namespace

	// ServerPID is the process that serves in Server.
	ServerPID int
	// GatunEnv is added to the environment of each gatun that is started from now on, and of none
	// of its clients.
	GatunEnv []string

	opt   Options
	mu    sync.Mutex
	procs []*Process
}

// Namespace is the name of a network namespace of the lab.
type Namespace string

// ErrNotRoot says that the lab cannot be built because the caller is not root.
var ErrNotRoot = errors.New("the lab needs root: it makes network namespaces")

var labName = regexp.MustCompile(`^gte(\d+)n\d+-`)

// New builds a lab and starts its servers. The caller closes it.
func New(opt Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	prefix := fmt.Sprintf("gte%dn%d-", os.Getpid(), rand.IntN(1_000_000))
	l := &Lab{
		Dir: opt.Dir, Bins: opt.Bins, opt: opt,
		Host: Namespace(prefix + "h"), Twin: Namespace(prefix + "t"), Router: Namespace(prefix + "r"),
		Server: Namespace(prefix + "s"), Far: Namespace(prefix + "f"),
	}
	for _, step := range []func() error{l.namespaces, l.sysctls, l.links, l.addresses, l.resolvConf, l.counters, l.servers} {
		if err := step(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Sweep removes the namespaces of labs whose process is gone.
func Sweep() error {
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return fmt.Errorf("ip netns list: %w", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		name, _, _ := strings.Cut(line, " ")
		m := labName.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if pid, _ := strconv.Atoi(m[1]); syscall.Kill(pid, 0) == nil {
			continue
		}
		if err := Namespace(name).remove(); err != nil {
			return err
		}
	}
	return nil
}

// Namespace returns a namespace by the letter that its name ends with: h, t, r, s or f.
func (l *Lab) Namespace(letter string) Namespace {
	for _, ns := range l.all() {
		if strings.HasSuffix(string(ns), "-"+letter) {
			return ns
		}
	}
	return ""
}

func (l *Lab) all() []Namespace { return []Namespace{l.Host, l.Twin, l.Router, l.Server, l.Far} }

func (l *Lab) namespaces() error {
	for _, ns := range l.all() {
		if _, err := run("ip", "netns", "add", string(ns)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) links() error {
	return ipBatch(l.Router, fmt.Sprintf(`link add br0 type bridge forward_delay 0 mcast_snooping 0
link add to-h type veth peer name eth0 netns %s
link add to-t type veth peer name eth0 netns %s
link set to-h master br0
link set to-t master br0
link add wan0 type veth peer name eth0 netns %s`, l.Host, l.Twin, l.Server),
		l.Server, fmt.Sprintf("link add far0 type veth peer name eth0 netns %s", l.Far))
}

// sysctls: no duplicate address detection (an address works at once), forwarding on the two
// routers, ping sockets for everybody, many ports with quick reuse (else connection rates
// measure port exhaustion).
func (l *Lab) sysctls() error {
	for _, ns := range l.all() {
		set := map[string]string{
			"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "0",
			"net/ipv4/ping_group_range": "0 2147483647", "net/ipv4/ip_local_port_range": "1024 65000",
			"net/ipv4/tcp_tw_reuse": "1",
			// A router that limits its ICMP errors makes two traceroutes differ.
			"net/ipv4/icmp_ratemask": "0", "net/ipv6/icmp/ratemask": "", "net/ipv4/icmp_msgs_per_sec": "100000",
			"net/ipv6/icmp/ratelimit": "0",
		}
		if ns == l.Router || ns == l.Server {
			set["net/ipv4/ip_forward"], set["net/ipv6/conf/all/forwarding"] = "1", "1"
		}
		if err := ns.sysctl(set); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addresses() error {
	end := func(a4, a6, gw4, gw6 string) string {
		return fmt.Sprintf(`link set lo up
link set eth0 up
address add %s/24 dev eth0
address add %s/64 dev eth0 nodad
route add default via %s
-6 route add default via %s`, a4, a6, gw4, gw6)
	}
	host := end(Host4, Host6, Gateway4, Gateway6)
	if l.opt.LateV6 {
		host = strings.Join(without(strings.Split(host, "\n"), "-6 ", Host6), "\n")
	}
	router := fmt.Sprintf(`link set lo up
link set to-h up
link set to-t up
link set br0 up
link set wan0 up
address add %[1]s/24 dev br0
address add %[2]s/64 dev br0 nodad
address add 198.51.100.1/24 dev wan0
address add 2001:db8:2::1/64 dev wan0 nodad
route add 203.0.113.0/24 via %[3]s
route add %[5]s via %[3]s
-6 route add 2001:db8:3::/64 via %[4]s`, Gateway4, Gateway6, Server4, Server6, Many4)
	server := end(Server4, Server6, "198.51.100.1", "2001:db8:2::1") + fmt.Sprintf(`
address add %s/24 dev eth0
address add %s/64 dev eth0 nodad
address add %s/24 dev eth0
address add %s/64 dev eth0 nodad
link set far0 up
address add 203.0.113.1/24 dev far0
address add 2001:db8:3::1/64 dev far0 nodad
route add local %s dev lo`, Second4, Second6, Resolver4, Resolver6, Many4)
	return ipBatch(l.Router, router, l.Host, host, l.Twin, end(Twin4, Twin6, Gateway4, Gateway6),
		l.Server, server, l.Far, end(Far4, Far6, "203.0.113.1", "2001:db8:3::1"))
}

// resolvConf gives host and twin the lab's name server: "ip netns exec" binds the file over
// /etc/resolv.conf in a mount namespace of the program's own.
func (l *Lab) resolvConf() error {
	for _, ns := range []Namespace{l.Host, l.Twin} {
		dir := ns.etc()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		text := "nameserver " + Resolver4 + "\nnameserver " + Resolver6 + "\noptions timeout:2 attempts:1\n"
		if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every process in the lab's namespaces and removes the namespaces.
func (l *Lab) Close() error {
	l.mu.Lock()
	procs := l.procs
	l.procs = nil
	l.mu.Unlock()
	for _, p := range procs {
		p.Kill()
	}
	var errs []error
	for _, ns := range l.all() {
		errs = append(errs, ns.remove())
	}
	return errors.Join(errs...)
}

func (ns Namespace) etc() string { return filepath.Join("/etc/netns", string(ns)) }

// remove kills what still runs in the namespace: all of it was started by the lab.
func (ns Namespace) remove() error {
	out, err := exec.Command("ip", "netns", "pids", string(ns)).Output()
	if err == nil {
		for _, f := range strings.Fields(string(out)) {
			if pid, _ := strconv.Atoi(f); pid > 1 && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	_ = os.RemoveAll(ns.etc())
	_, err = run("ip", "netns", "del", string(ns))
	return err
}

// sysctl writes kernel settings of the namespace; an empty value or a key that this kernel does
// not have is passed over.
func (ns Namespace) sysctl(set map[string]string) error {
	var script strings.Builder
	for key, value := range set {
		if value != "" {
			fmt.Fprintf(&script, "if [ -e /proc/sys/%s ]; then echo %q > /proc/sys/%s; fi\n", key, value, key)
		}
	}
	_, err := run("ip", "netns", "exec", string(ns), "sh", "-ec", script.String())
	return err
}

// Output runs a command as root in the namespace and returns what it printed.
func (ns Namespace) Output(command ...string) (string, error) {
	return run("ip", append([]string{"netns", "exec", string(ns)}, command...)...)
}

// ipBatch runs batches of ip commands: pairs of namespace and text.
func ipBatch(pairs ...any) error {
	for i := 0; i < len(pairs); i += 2 {
		ns, text := pairs[i].(Namespace), pairs[i+1].(string)
		if err := batch(ns, text); err != nil {
			return err
		}
	}
	return nil
}

func batch(ns Namespace, text string) error {
	var v4, v6 []string
	for _, line := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(line, "-6 "); ok {
			v6 = append(v6, rest)
		} else {
			v4 = append(v4, line)
		}
	}
	for i, lines := range [...][]string{v4, v6} {
		if len(lines) == 0 {
			continue
		}
		args := []string{"-n", string(ns), "-b", "-"}
		if i == 1 {
			args = append([]string{"-6"}, args...)
		}
		cmd := exec.Command("ip", args...)
		cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip batch in %s: %w: %s", ns, err, out)
		}
	}
	return nil
}

func run(name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // a server that it leaves behind may keep the pipe
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func without(lines []string, parts ...string) []string {
	var out []string
next:
	for _, line := range lines {
		for _, p := range parts {
			if strings.Contains(line, p) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}
