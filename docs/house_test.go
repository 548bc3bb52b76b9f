// Package docs holds the project's law, architecture.md, and the test that compares it with
// the code. Nobody imports it.
package docs

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "gatun"
	root   = ".."
)

// law is architecture.md, read.
type law struct {
	rooms  map[string]map[string]bool // room -> rooms it may import; "*" everything
	doors  map[string]string          // module -> the only room that imports it
	limits map[string]int             // measure -> limit
}

// TestHouse compares architecture.md with the code: imports per platform, doors of the
// dependencies, and the measures of taste. Each room is a subtest, so that a builder sees the
// faults of one room alone: go test ./docs -run TestHouse/stack
func TestHouse(t *testing.T) {
	l := readLaw(t)
	pkgs := parseTree(t)
	t.Run("map", func(t *testing.T) {
		for room := range l.rooms {
			if pkgs[room] == nil {
				t.Errorf("architecture.md names the room %q, which has no Go file", room)
			}
		}
		for room := range pkgs {
			if l.rooms[room] == nil {
				t.Errorf("the room %q is not in architecture.md: add it to the table, with a record in docs/decisions", room)
			}
		}
	})
	imports := map[string]map[string][]string{}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		imports[goos] = listImports(t, goos)
	}
	for _, room := range sortedKeys(pkgs) {
		t.Run(room, func(t *testing.T) {
			for goos, of := range imports {
				checkImports(t, l, goos, room, of[room])
			}
			pkgs[room].check(t, l)
		})
	}
}

// TestHouseFindsFaults proves that the checks can fail: a room built wrong on purpose must
// give exactly the faults it was built with.
func TestHouseFindsFaults(t *testing.T) {
	src := `package wrong
import "runtime"
var counter int
var table = map[string]int{}
func init() {}
func Exported() { counter++; table["a"] = 1; _ = runtime.GOOS; p := &counter; _ = p }
type Undocumented struct{}
func (Undocumented) Method() {}
func shadow() { counter := 0; counter++; _ = counter }
`
	p := &room{name: "wrong"}
	p.add(t, "wrong.go", src)
	l := law{limits: map[string]int{limitFile: 5, limitFunc: 60, limitP90: 35}}
	var got []string
	p.report(l, func(_ string, what string) { got = append(got, what) })
	for _, want := range []string{
		"init()", "counter is assigned", "table is assigned", "Exported has no doc", "Undocumented has no doc",
		"Method has no doc", "package doc", "runtime.GOOS", "lines, more than 5",
	} {
		if !contains(got, want) {
			t.Errorf("no fault found for %q in %q", want, got)
		}
	}
	if n := count(got, "counter is assigned"); n != 2 {
		t.Errorf("counter: %d faults, want 2 (++ and &; the local of the same name is innocent)", n)
	}
}

func checkImports(t *testing.T, l law, goos, room string, imports []string) {
	t.Helper()
	may := l.rooms[room]
	for _, imp := range imports {
		if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
			switch {
			case ours == "cmd/gatun":
				t.Errorf("%s: imports cmd/gatun", goos)
			case ours == "api" && room != "cmd/gatun":
				t.Errorf("%s: only cmd/gatun may import api", goos)
			case may != nil && !may["*"] && !may[ours]:
				t.Errorf("%s: imports %s, which architecture.md does not allow", goos, ours)
			}
		}
		for mod, door := range l.doors {
			if (imp == mod || strings.HasPrefix(imp, mod+"/")) && room != door {
				t.Errorf("%s: imports %s, but the only door to %s is %s", goos, imp, mod, door)
			}
		}
	}
}

func readLaw(t *testing.T) law {
	t.Helper()
	b, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	l := law{rooms: map[string]map[string]bool{}, doors: map[string]string{}, limits: map[string]int{}}
	var section string
	for _, line := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(line, "## ") {
			section = line
		}
		cells := strings.Split(strings.Trim(line, "| "), "|")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || len(cells) < 2 {
			continue
		}
		first, last := ticked(cells[0]), cells[len(cells)-1]
		switch {
		case strings.HasPrefix(section, "## 1.") && first != nil:
			l.rooms[first[0]] = set(append(ticked(last), strings.TrimSpace(last)))
		case strings.HasPrefix(section, "## 2.") && first != nil:
			l.doors[first[0]] = ticked(last)[0]
		case strings.HasPrefix(section, "## 3."):
			if n, err := strconv.Atoi(strings.TrimSpace(last)); err == nil {
				l.limits[strings.TrimSpace(cells[0])] = n
			}
		}
	}
	if len(l.rooms) < 10 || len(l.doors) < 5 || l.limits[limitFile] == 0 || l.limits[limitFunc] == 0 || l.limits[limitP90] == 0 {
		t.Fatalf("architecture.md is not read rightly: %d rooms, %d doors, limits %v", len(l.rooms), len(l.doors), l.limits)
	}
	return l
}

// The measures of architecture.md section 3, by their names there.
const (
	limitFile = "lines of a file (tests apart)"
	limitFunc = "lines of a function (tests apart)"
	limitP90  = "lines of a function, 90th percentile of a room"
)

func listImports(t *testing.T, goos string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports := map[string][]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		imports[strings.TrimPrefix(p.ImportPath, module+"/")] = p.Imports
	}
	return imports
}

func parseTree(t *testing.T) map[string]*room {
	t.Helper()
	rooms := map[string]*room{}
	bad := set([]string{"internal", "util", "utils", "common", "pkg", "types", "model", "models"})
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || name == "testdata") {
				return filepath.SkipDir
			}
			if bad[name] {
				t.Errorf("%s: a folder is named after what it is about, not %q", p, name)
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		dir := path.Dir(filepath.ToSlash(rel))
		if rooms[dir] == nil {
			rooms[dir] = &room{name: dir}
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rooms[dir].add(t, filepath.ToSlash(rel), string(src))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rooms
}

// room is one package with all its files, whatever platform they are for.
type room struct {
	name  string
	fset  *token.FileSet
	files []file
	vars  map[string]bool // package variables of the non-test files
}

type file struct {
	name  string
	test  bool
	lines int
	src   string
	ast   *ast.File
}

func (r *room) add(t *testing.T, name, src string) {
	t.Helper()
	if r.fset == nil {
		r.fset, r.vars = token.NewFileSet(), map[string]bool{}
	}
	f, err := parser.ParseFile(r.fset, name, src, parser.ParseComments)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	x := file{name: name, test: strings.HasSuffix(name, "_test.go"), lines: strings.Count(src, "\n"), src: src, ast: f}
	r.files = append(r.files, x)
	if x.test {
		return
	}
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			for _, s := range g.Specs {
				for _, n := range s.(*ast.ValueSpec).Names {
					r.vars[n.Name] = n.Name != "_"
				}
			}
		}
	}
}

func (r *room) check(t *testing.T, l law) {
	t.Helper()
	r.report(l, func(where, what string) { t.Errorf("%s: %s", where, what) })
}

// report calls fault for every breach of the measures.
func (r *room) report(l law, fault func(where, what string)) {
	var docs []string
	var lengths []int
	code := false
	for _, f := range r.files {
		if f.ast.Doc != nil {
			docs = append(docs, f.name)
		}
		if f.test {
			continue
		}
		code = true
		if f.lines > l.limits[limitFile] {
			fault(f.name, strconv.Itoa(f.lines)+" lines, more than "+strconv.Itoa(l.limits[limitFile]))
		}
		lengths = append(lengths, r.checkDecls(f, l, fault)...)
		r.checkBodies(f, fault)
	}
	if len(docs) != 1 {
		fault(r.name, "the package doc comment must be in exactly one file, it is in "+strconv.Itoa(len(docs))+": "+strings.Join(docs, ", "))
	}
	if sort.Ints(lengths); code && len(lengths) >= 10 {
		if p90 := lengths[len(lengths)*9/10]; p90 > l.limits[limitP90] {
			fault(r.name, "the 90th percentile of function lengths is "+strconv.Itoa(p90)+", more than "+strconv.Itoa(l.limits[limitP90]))
		}
	}
}

// checkDecls checks lengths and docs, and returns the lengths of the functions.
func (r *room) checkDecls(f file, l law, fault func(where, what string)) []int {
	var lengths []int
	for _, d := range f.ast.Decls {
		where := r.fset.Position(d.Pos()).String()
		switch d := d.(type) {
		case *ast.FuncDecl:
			n := r.fset.Position(d.End()).Line - r.fset.Position(d.Pos()).Line + 1
			lengths = append(lengths, n)
			if n > l.limits[limitFunc] {
				fault(where, d.Name.Name+" has "+strconv.Itoa(n)+" lines, more than "+strconv.Itoa(l.limits[limitFunc]))
			}
			if d.Name.Name == "init" && d.Recv == nil {
				fault(where, "init() hides work from main: call it from cmd")
			}
			if d.Name.IsExported() && d.Doc == nil && receiverExported(d) {
				fault(where, d.Name.Name+" has no doc comment")
			}
		case *ast.GenDecl:
			checkGenDocs(d, where, fault)
		}
	}
	return lengths
}

func checkGenDocs(d *ast.GenDecl, where string, fault func(where, what string)) {
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
				fault(where, s.Name.Name+" has no doc comment")
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
					fault(where, n.Name+" has no doc comment")
				}
			}
		}
	}
}

func receiverExported(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	x := d.Recv.List[0].Type
	for {
		switch y := x.(type) {
		case *ast.StarExpr:
			x = y.X
		case *ast.IndexExpr:
			x = y.X
		case *ast.IndexListExpr:
			x = y.X
		case *ast.Ident:
			return y.IsExported()
		default:
			return true
		}
	}
}

// checkBodies finds assignments to package variables and calls that the law forbids.
func (r *room) checkBodies(f file, fault func(where, what string)) {
	assigned := func(e ast.Expr, how string) {
		if id := r.packageVar(f, e); id != nil {
			fault(r.fset.Position(e.Pos()).String(), "the package variable "+id.Name+" is assigned after its declaration ("+how+")")
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					assigned(e, n.Tok.String())
				}
			}
		case *ast.IncDecStmt:
			assigned(n.X, n.Tok.String())
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				assigned(n.X, "its address is taken")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok {
				r.checkSelector(x.Name+"."+n.Sel.Name, r.fset.Position(n.Pos()).String(), fault)
			}
		}
		return true
	})
	if strings.Contains(f.src, "//go:"+"linkname") {
		fault(f.name, "go:linkname is a door around a dependency's door")
	}
}

func (r *room) checkSelector(sel, where string, fault func(where, what string)) {
	switch sel {
	case "zap.L", "zap.S", "zap.ReplaceGlobals":
		fault(where, sel+": loggers are passed as fields")
	case "runtime.GOOS":
		if r.name != "cmd/gatun" {
			fault(where, "runtime.GOOS is asked only in cmd: use a file of the platform")
		}
	case "viper.GetViper", "viper.Set", "viper.Get":
		fault(where, sel+": the global viper is forbidden")
	}
}

// packageVar returns the identifier at the root of e if it is a package variable: one that
// the parser resolved to a declaration at the top of this file, or could not resolve in this
// file although a sibling file declares it.
func (r *room) packageVar(f file, e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			local := x.Obj != nil && f.ast.Scope.Lookup(x.Name) != x.Obj
			if local || !r.vars[x.Name] {
				return nil
			}
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

func ticked(cell string) []string {
	var out []string
	for i, s := range strings.Split(cell, "`") {
		if i%2 == 1 {
			out = append(out, s)
		}
	}
	return out
}

func set(list []string) map[string]bool {
	m := map[string]bool{}
	for _, s := range list {
		m[s] = true
	}
	return m
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func contains(list []string, part string) bool { return count(list, part) > 0 }

func count(list []string, part string) int {
	n := 0
	for _, s := range list {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}
