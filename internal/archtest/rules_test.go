package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
)

// violation is a broken rule, with the reason of the rule and what to do about it.
type violation struct {
	rule, file string
	line       int
	what       string
	why, do    string
}

func (v violation) String() string {
	return fmt.Sprintf("%s:%d: %s: %s\n\twhy: %s\n\tdo:  %s", v.file, v.line, v.rule, v.what, v.why, v.do)
}

// rule looks at the whole tree; most look at one file after the other.
type rule struct {
	name  string
	check func(t tree, report func(s source, line int, what, do string))
	why   string
}

var rules = []rule{
	{"floors", checkFloors, "what imports only downward can be read, tested and replaced one floor at a time"},
	{"drivers", checkDrivers, "the house must not care which hypervisor it stands on; one place chooses"},
	{"doors", checkDoors, "a library that has one door can be replaced, and its types don't leak into everything"},
	{"go", checkGo, "a goroutine without an owner is never waited for, and its panic kills the agent"},
	{"init", checkInit, "what runs before main can't be configured, tested or seen"},
	{"comments", checkComments, "a room whose purpose isn't one sentence is two rooms"},
	{"sleep", checkSleep, "a sleep is slow when it is right and flaky when it is wrong"},
	{"size", checkSize, "what doesn't fit a screen isn't read whole"},
}

// violations applies one rule to the tree and leaves out what is exempt. It notes the exemptions that were needed.
func violations(t tree, r rule, exempt []exemption, used map[exemption]bool) []violation {
	var found []violation
	r.check(t, func(s source, line int, what, do string) {
		for _, e := range exempt {
			if e.rule == r.name && e.file == s.file {
				used[e] = true
				return
			}
		}
		found = append(found, violation{rule: r.name, file: s.file, line: line, what: what, why: r.why, do: do})
	})
	return found
}

func checkFloors(t tree, report func(source, int, string, string)) {
	homeless := make(map[string]bool)
	for _, s := range t.files {
		if !s.production() {
			continue
		}
		floor, ok := floors[s.pkg]
		if !ok {
			if !homeless[s.pkg] {
				homeless[s.pkg] = true
				report(s, 1, s.pkg+" has no floor", "give it one in internal/archtest/table_test.go, as low as its imports allow")
			}
			continue
		}
		s.imports(func(spec *ast.ImportSpec, imported string) {
			rel, ours := strings.CutPrefix(imported, t.module+"/")
			if !ours {
				return
			}
			below, ok := floors[rel]
			if ok && below < floor {
				return
			}
			what := fmt.Sprintf("%s (%d) imports %s, which has no floor", s.pkg, floor, rel)
			if ok {
				what = fmt.Sprintf("%s (%d) imports %s (%d)", s.pkg, floor, rel, below)
			}
			report(s, s.line(spec.Pos()), what,
				"declare the small interface that you need, in your package, and let internal/compose connect it; or move the shared noun down")
		})
	}
}

func checkDrivers(t tree, report func(source, int, string, string)) {
	for _, s := range t.files {
		if !s.production() || slices.Contains(driverUsers, s.file) || slices.Contains(driverUsers, s.pkg) {
			continue
		}
		s.imports(func(spec *ast.ImportSpec, imported string) {
			if rel, ok := strings.CutPrefix(imported, t.module+"/"); ok && slices.Contains(drivers, rel) {
				report(s, s.line(spec.Pos()), s.file+" names the driver "+rel,
					"take an interface; only "+strings.Join(driverUsers, " and ")+" name a driver")
			}
		})
	}
}

func checkDoors(t tree, report func(source, int, string, string)) {
	for _, s := range t.files {
		if !s.production() {
			continue
		}
		s.imports(func(spec *ast.ImportSpec, imported string) {
			for _, d := range doors {
				if (imported == d.library || strings.HasPrefix(imported, d.library+"/")) && !d.opensTo(s.pkg) {
					report(s, s.line(spec.Pos()), fmt.Sprintf("%s imports %s", s.pkg, imported), d.instead)
				}
			}
		})
	}
}

// opensTo reports whether the package may import the library.
func (d door) opensTo(pkg string) bool {
	return slices.ContainsFunc(d.rooms, func(room string) bool {
		if end, ok := strings.CutPrefix(room, "..."); ok {
			return strings.HasSuffix(pkg, end)
		}
		if root, ok := strings.CutSuffix(room, "/..."); ok {
			return pkg == root || strings.HasPrefix(pkg, root+"/")
		}
		return pkg == room
	})
}

func checkGo(t tree, report func(source, int, string, string)) {
	const do = "use green.Spawn, green.SpawnN or a green.Pool"
	for _, s := range t.files {
		if s.testing() || s.pkg == greenRoom {
			continue
		}
		s.imports(func(spec *ast.ImportSpec, imported string) {
			if imported == "golang.org/x/sync/errgroup" {
				report(s, s.line(spec.Pos()), "errgroup starts goroutines outside of "+greenRoom, do)
			}
		})
		_, locks := s.nameOf("sync")
		ast.Inspect(s.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				report(s, s.line(n.Pos()), "a go statement outside of "+greenRoom, do)
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && locks && sel.Sel.Name == "Go" && len(n.Args) == 1 {
					report(s, s.line(n.Pos()), "WaitGroup.Go starts a goroutine outside of "+greenRoom, do)
				}
			}
			return true
		})
	}
}

func checkInit(t tree, report func(source, int, string, string)) {
	for _, s := range t.files {
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				report(s, s.line(f.Pos()), "func init", "call it from where its result is needed, or make it a value")
			}
		}
	}
}

func checkComments(t tree, report func(source, int, string, string)) {
	first := make(map[string]source)
	good := make(map[string]bool)
	for _, s := range t.files {
		if s.test {
			continue
		}
		if _, ok := first[s.pkg]; !ok {
			first[s.pkg] = s
		}
		if s.ast.Doc != nil && strings.HasPrefix(s.ast.Doc.Text(), commentStart(s)+" ") {
			good[s.pkg] = true
		}
	}
	for pkg, s := range first {
		if !good[pkg] {
			report(s, s.line(s.ast.Package), pkg+" has no package comment that begins \""+commentStart(s)+" \"",
				"say above the package clause (of doc.go, when it is long) what the package is for")
		}
	}
}

// commentStart is how the comment of a file's package begins.
func commentStart(s source) string {
	if s.ast.Name.Name == "main" {
		return "Command " + path.Base(s.pkg)
	}
	return "Package " + s.ast.Name.Name
}

func checkSleep(t tree, report func(source, int, string, string)) {
	for _, s := range t.files {
		do := "run the test in a synctest bubble, or wait for the event itself with a limit"
		if s.production() {
			do = "use green.Sleep, which ends with its context"
		}
		_, bubble := s.nameOf("testing/synctest")
		if s.test && bubble || s.pkg == greenRoom && !s.test {
			continue
		}
		name, ok := s.nameOf("time")
		if !ok {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == name {
					report(s, s.line(sel.Pos()), "time.Sleep", do)
				}
			}
			return true
		})
	}
}

func checkSize(t tree, report func(source, int, string, string)) {
	for _, s := range t.files {
		if ast.IsGenerated(s.ast) {
			continue
		}
		maxFunc, maxFile := maxFuncLines, maxFileLines
		if s.testing() {
			maxFunc, maxFile = maxTestFuncLines, maxTestFileLines
		}
		if n := s.fset.File(s.ast.FileStart).LineCount(); n > maxFile {
			report(s, 1, fmt.Sprintf("the file has %d lines, %d are allowed", n, maxFile), "split it by verb or by noun")
		}
		for _, d := range s.ast.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.line(f.End()) - s.line(f.Pos()) + 1; n > maxFunc {
				report(s, s.line(f.Pos()), fmt.Sprintf("%s has %d lines, %d are allowed", f.Name.Name, n, maxFunc),
					"give its steps names, or make the repetition a table")
			}
		}
	}
}
