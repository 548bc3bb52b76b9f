package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"gatun/e2e/lab"
)

// bins builds the binaries once, at the first test that needs them.
var bins = sync.OnceValues(func() (lab.Binaries, error) {
	if err := lab.Sweep(); err != nil {
		return lab.Binaries{}, err
	}
	dir, err := os.MkdirTemp("", "gatun-e2e-bin-")
	if err != nil {
		return lab.Binaries{}, err
	}
	return lab.Build(dir)
})

// atOnce is how many stories are told at the same time, unless -parallel says otherwise: each waits
// for most of its time.
const atOnce = "4"

func TestMain(m *testing.M) {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if os.Geteuid() == 0 {
		if b, err := bins(); err == nil {
			_ = os.RemoveAll(filepath.Dir(b.Peer))
		}
	}
	os.Exit(code)
}

// TestScript runs the stories of testdata/script.
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, params(t, "testdata/script", nil))
}

// TestVerdicts runs every story of testdata/story for both modes and both families: the verdict
// matrix. A story sees $MODE, and the addresses of its family.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"run", "up"} {
		for _, family := range []string{"v4", "v6"} {
			t.Run(mode+"/"+family, func(t *testing.T) {
				t.Parallel()
				vars := addresses(family)
				vars["MODE"], vars["ACCEPT"] = mode, accepted[mode]
				testscript.Run(t, params(t, "testdata/story", vars))
			})
		}
	}
}

// accepted is the verdict that permits: `up` hands such flows back to the kernel, `run` carries them.
var accepted = map[string]string{"run": "accept", "up": "permanent-accept"}

// TestControl tells two stories without gatun: what they compare must be equal there, or they
// would say nothing about gatun.
func TestControl(t *testing.T) {
	t.Parallel()
	for _, family := range []string{"v4", "v6"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			vars := addresses(family)
			vars["MODE"] = "none"
			p := params(t, "", vars)
			p.Files = []string{"testdata/story/truth.txtar", "testdata/story/tools.txtar"}
			testscript.Run(t, p)
		})
	}
}

// addresses are the lab's addresses of one family; the forms with a bracket are for ports.
func addresses(family string) map[string]string {
	if family == "v4" {
		return map[string]string{
			"FAMILY": family, "SERVER": lab.Server4, "SECOND": lab.Second4, "RESOLVER": lab.Resolver4, "DEAD": lab.Dead4, "FAR": lab.Far4,
			"SERVER_": lab.Server4, "SECOND_": lab.Second4, "DEAD_": lab.Dead4, "FAR_": lab.Far4, "RESOLVER_": lab.Resolver4,
			"TYPE": "A", "INSIDE": "10x0x0x1", "INSIDE_": "10.0.0.1", // as a label of peer rebind, and as it is
		}
	}
	return map[string]string{
		"FAMILY": family, "SERVER": lab.Server6, "SECOND": lab.Second6, "RESOLVER": lab.Resolver6, "DEAD": lab.Dead6, "FAR": lab.Far6,
		"SERVER_": "[" + lab.Server6 + "]", "SECOND_": "[" + lab.Second6 + "]", "DEAD_": "[" + lab.Dead6 + "]", "FAR_": "[" + lab.Far6 + "]",
		"RESOLVER_": "[" + lab.Resolver6 + "]", "TYPE": "AAAA", "INSIDE": "fc00xx1", "INSIDE_": "fc00::1", "NMAP6": "-6",
	}
}

// newLab builds a network for one test.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: " + lab.ErrNotRoot.Error())
	}
	b, err := bins()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Options{Bins: b, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func params(t *testing.T, dir string, vars map[string]string) testscript.Params {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: " + lab.ErrNotRoot.Error())
	}
	b, err := bins()
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "gatun-e2e-") // not t.TempDir: nobody must be able to enter it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			_ = os.RemoveAll(root)
		}
	})
	return testscript.Params{
		Dir:         dir,
		WorkdirRoot: root,
		Cmds:        commands(),
		Condition:   condition,
		Setup: func(env *testscript.Env) error {
			for k, v := range vars {
				env.Setenv(k, v)
			}
			for k, v := range map[string]string{"GATUN": b.Gatun, "PEER": b.Peer, "HOST4": lab.Host4, "HOST6": lab.Host6} {
				env.Setenv(k, v)
			}
			env.Values[storyKey{}] = &story{bins: b, dir: env.WorkDir}
			return fillConfigs(env)
		},
	}
}

// condition is what a story may ask of the machine.
func condition(name string) (bool, error) {
	if name != "udplite" {
		return false, fmt.Errorf("no condition %q", name)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	if err == nil {
		err = unix.Close(fd)
	}
	return err == nil, nil
}

// fillConfigs writes the variables of a story into its configuration files: a rule cannot say
// "the server of this family".
func fillConfigs(env *testscript.Env) error {
	files, err := filepath.Glob(filepath.Join(env.WorkDir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(os.Expand(string(b), env.Getenv)), 0o644); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}
