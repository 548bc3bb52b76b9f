package e2e

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatun/e2e/lab"
	"gatun/e2e/policytest"
)

// cmdMMDB writes a MaxMind file: mmdb FILE PREFIX=COUNTRY|ASnumber…
func cmdMMDB(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "mmdb FILE PREFIX=CC|ASN…")
	networks := map[string]map[string]any{}
	for _, a := range args[1:] {
		prefix, value, _ := strings.Cut(a, "=")
		_, err := netip.ParsePrefix(prefix)
		ts.Check(err)
		if digits, ok := strings.CutPrefix(value, "AS"); ok && len(value) > 2 {
			n, err := strconv.ParseUint(digits, 10, 32)
			ts.Check(err)
			networks[prefix] = map[string]any{"autonomous_system_number": uint32(n)}
			continue
		}
		networks[prefix] = map[string]any{"country": map[string]any{"iso_code": value}}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), policytest.MMDB("Story", networks), 0o644))
}

// cmdNames writes a list of many names: names FILE N
func cmdNames(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 2, "names FILE N")
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	var b strings.Builder
	for i := range n {
		b.WriteString("host" + strconv.Itoa(i) + ".listed.example\n")
	}
	b.WriteString("ads.example.net\n")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
}

// cmdListIs waits until `gatun list --json` says of a list what is wanted: list-is ID KEY=VALUE…;
// KEY~VALUE is a part of it.
func cmdListIs(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) >= 2, "list-is ID KEY=VALUE…")
	s := of(ts)
	var last string
	err := lab.Wait(time.Minute, strings.Join(args, " "), func() (bool, error) {
		out, err := s.gatun.Client("list", "--json")
		if err != nil {
			return false, err
		}
		var all struct{ Lists []map[string]any }
		if err := json.Unmarshal(out, &all); err != nil {
			return false, err
		}
		for _, l := range all.Lists {
			if l["id"] != args[0] {
				continue
			}
			b, _ := json.Marshal(l)
			last = string(b)
			return !slices.ContainsFunc(args[1:], func(a string) bool { return !listHas(l, a) }), nil
		}
		return false, nil
	})
	if err != nil {
		ts.Fatalf("%v; it is %s", err, last)
	}
}

func listHas(l map[string]any, want string) bool {
	text := func(key string) string {
		switch v := l[key].(type) {
		case float64:
			return strconv.FormatFloat(v, 'f', -1, 64)
		case string:
			return v
		default:
			return ""
		}
	}
	if key, part, ok := strings.Cut(want, "~"); ok && !strings.Contains(key, "=") {
		return strings.Contains(text(key), part)
	}
	key, value, _ := strings.Cut(want, "=")
	return text(key) == value
}

// cmdStampServer starts the helper's name server and server of intelligence in the server's
// namespace, with the files of $WORK/files, on 198.51.100.10:5300 and :8443: stamp-server
func cmdStampServer(ts *testscript.TestScript, _ bool, _ []string) {
	s := of(ts)
	cert, key := s.lab.CertFiles()
	ts.Check(os.MkdirAll(filepath.Join(s.dir, "files"), 0o755))
	cmdServerSide(ts, false, []string{
		s.bins.Peer, "stamp", "-dns", lab.Server4 + ":5300", "-https", lab.Server4 + ":8443", "-cert", cert, "-key", key,
		"-log", filepath.Join(s.dir, "stamp.ndjson"), "-files", filepath.Join(s.dir, "files"),
	})
}

// cmdStamped counts the requests of the helper's server: stamped KEY VALUE ==|> N, where KEY is
// asked, stamped or fetched.
func cmdStamped(ts *testscript.TestScript, _ bool, args []string) {
	usage(ts, len(args) == 4, "stamped asked|stamped|fetched VALUE ==|> N")
	b, err := os.ReadFile(filepath.Join(of(ts).dir, "stamp.ndjson"))
	ts.Check(err)
	compare(ts, "the server saw "+args[0]+" "+args[1], strings.Count(strings.ToLower(string(b)), `"`+args[0]+`":"`+args[1]+`"`), args[2], args[3])
}
