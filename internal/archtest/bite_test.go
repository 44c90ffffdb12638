package archtest

import (
	"fmt"
	"go/token"
	"strings"
	"testing"
)

const module = "example.org/house"

// trimPattern returns the package that a pattern of a door names, or nothing when it names many.
func trimPattern(room string) string {
	if strings.HasPrefix(room, "...") {
		return ""
	}
	return strings.TrimSuffix(room, "/...")
}

// pad returns n lines that mean nothing.
func pad(n int) string { return strings.Repeat("\t_ = 0\n", n) }

// files maps a path to its text; "M/" in it stands for the module.
type files map[string]string

// bites is a small tree for each rule and what the rule must say to it: nothing, or one part of each message.
var bites = []struct {
	rule, name string
	files      files
	want       []string
}{
	{"floors", "down", files{"pkg/agent/a.go": `package agent; import _ "M/pkg/fault"`}, nil},
	{"floors", "up", files{"pkg/green/a.go": `package green; import _ "M/pkg/agent"`}, []string{"pkg/green (5) imports pkg/agent (40)"}},
	{"floors", "sibling", files{"pkg/vif/a.go": `package vif; import _ "M/pkg/migration"`}, []string{"pkg/vif (30) imports pkg/migration (30)"}},
	{
		"floors", "no floor, said once",
		files{"pkg/util/a.go": `package util`, "pkg/util/b.go": `package util; import _ "M/pkg/agent"`},
		[]string{"pkg/util has no floor"},
	},
	{"floors", "imports what has no floor", files{"pkg/agent/a.go": `package agent; import _ "M/test/lab"`}, []string{"pkg/agent (40) imports test/lab, which has no floor"}},
	{"floors", "tests are free", files{"pkg/green/a_test.go": `package green_test; import _ "M/pkg/agent"`}, nil},
	{"floors", "test/ is outside", files{"test/lab/a.go": `package lab; import _ "M/cmd/compute-agent"`}, nil},
	{"floors", "others' modules don't matter", files{"pkg/green/a.go": `package green; import _ "example.org/housekeeping/pkg/agent"`}, nil},

	{"drivers", "run.go may", files{"cmd/compute-agent/run.go": `package main; import _ "M/pkg/virt/libvirt"`}, nil},
	{"drivers", "simulate may", files{"pkg/simulate/host.go": `package simulate; import _ "M/pkg/virt/fake"`}, nil},
	{"drivers", "tests may", files{"pkg/agent/a_test.go": `package agent; import _ "M/pkg/virt/fake"`}, nil},
	{"drivers", "its neighbour may not", files{"cmd/compute-agent/root.go": `package main; import _ "M/pkg/virt/libvirt"`}, []string{"root.go names the driver pkg/virt/libvirt"}},
	{"drivers", "the composition root may not", files{"internal/compose/a.go": `package compose; import _ "M/pkg/virt/fake"`}, []string{"names the driver pkg/virt/fake"}},

	{"doors", "nats below rpc", files{"pkg/rpc/rpctest/a.go": `package rpctest; import _ "github.com/nats-io/nats-server/v2/server"`}, nil},
	{"doors", "nats elsewhere", files{"pkg/agent/a.go": `package agent; import _ "github.com/nats-io/nats.go/micro"`}, []string{"pkg/agent imports github.com/nats-io/nats.go/micro"}},
	{"doors", "a name that begins alike is another", files{"pkg/rpcx/a.go": `package rpcx; import _ "github.com/nats-io/nuid"`}, []string{"pkg/rpcx imports"}},
	{"doors", "a library that begins alike is another", files{"pkg/agent/a.go": `package agent; import _ "github.com/spf13/cobrador"`}, nil},
	{"doors", "go-libvirt", files{"pkg/virt/fake/a.go": `package fake; import _ "github.com/digitalocean/go-libvirt"`}, []string{"go-libvirt"}},
	{"doors", "cobra", files{"internal/config/a.go": `package config; import _ "github.com/spf13/cobra"`}, []string{"cobra"}},
	{"doors", "pflag for config", files{"internal/config/a.go": `package config; import _ "github.com/spf13/pflag"`}, nil},
	{"doors", "logrus", files{"pkg/green/a.go": `package green; import log "github.com/sirupsen/logrus"`}, []string{"logrus"}},
	{"doors", "bbolt", files{"pkg/agent/a.go": `package agent; import _ "go.etcd.io/bbolt"`}, []string{"bbolt"}},
	{"doors", "netlink", files{"pkg/inventory/a.go": `package inventory; import _ "github.com/vishvananda/netlink/nl"`}, []string{"netlink/nl"}},
	{"doors", "libvirtxml", files{"pkg/virt/a.go": `package virt; import _ "libvirt.org/go/libvirtxml"`}, []string{"libvirtxml"}},
	{"doors", "etree", files{"pkg/migration/a.go": `package migration; import _ "github.com/beevik/etree"`}, []string{"etree"}},
	{"doors", "etree for the driver", files{"pkg/virt/libvirt/a.go": `package libvirt; import _ "github.com/beevik/etree"`}, nil},
	{"doors", "koanf", files{"pkg/simulate/a.go": `package simulate; import _ "github.com/knadh/koanf/providers/env/v2"`}, []string{"koanf"}},
	{"doors", "go-toml", files{"cmd/compute-agent/a.go": `package main; import _ "github.com/pelletier/go-toml/v2"`}, []string{"go-toml"}},
	{"doors", "mpb", files{"pkg/controller/a.go": `package controller; import _ "github.com/vbauerster/mpb/v8"`}, []string{"mpb"}},
	{"doors", "go-systemd", files{"cmd/compute-agent/a.go": `package main; import _ "github.com/coreos/go-systemd/v22/daemon"`}, []string{"go-systemd"}},
	{"doors", "cgo", files{"pkg/virt/libvirt/a.go": `package libvirt; import "C"`}, []string{"imports C"}},
	{"doors", "testing in production", files{"pkg/virt/a.go": `package virt; import _ "testing"`}, []string{"imports testing"}},
	{"doors", "testing in a suite", files{"pkg/virt/virttest/a.go": `package virttest; import _ "testing"`}, nil},
	{"doors", "tests are free", files{"pkg/agent/a_test.go": `package agent; import _ "github.com/nats-io/nats.go"`}, nil},
	{"doors", "test/ is outside", files{"test/lab/a.go": `package lab; import _ "github.com/digitalocean/go-libvirt"`}, nil},

	{"go", "green may", files{"pkg/green/a.go": `package green; func f() { go f() }`}, nil},
	{"go", "tests may", files{"pkg/agent/a_test.go": `package agent; func f() { go f() }`}, nil},
	{"go", "contract suites may", files{"pkg/virt/virttest/a.go": `package virttest; func f() { go f() }`}, nil},
	{"go", "agent may not", files{"pkg/agent/a.go": `package agent; func f() { if true { go func() {}() } }`}, []string{"a go statement"}},
	{"go", "below green is not green", files{"pkg/green/sub/a.go": `package sub; func f() { go f() }`}, []string{"a go statement"}},
	{"go", "test/ neither", files{"test/lab/a.go": `package lab; func f() { go f() }`}, []string{"a go statement"}},
	{"go", "errgroup", files{"pkg/agent/a.go": `package agent; import _ "golang.org/x/sync/errgroup"`}, []string{"errgroup"}},
	{"go", "WaitGroup.Go", files{"pkg/agent/a.go": `package agent; import "sync"; func f(w *sync.WaitGroup) { w.Go(func() {}) }`}, []string{"WaitGroup.Go"}},
	{"go", "a word in a comment", files{"pkg/agent/a.go": "package agent\n// f may go wrong.\nfunc f() {}"}, nil},

	{"init", "a function", files{"pkg/agent/a.go": `package agent; func init() {}`}, []string{"func init"}},
	{"init", "two, one in a test", files{"pkg/agent/a.go": `package agent; func init() {}`, "pkg/agent/a_test.go": `package agent; func init() {}`}, []string{"func init", "func init"}},
	{"init", "a method is none", files{"pkg/agent/a.go": `package agent; type t int; func (t) init() {}`}, nil},

	{"comments", "good", files{"pkg/agent/doc.go": "// Package agent runs verbs.\npackage agent", "pkg/agent/a.go": `package agent`}, nil},
	{"comments", "good command", files{"cmd/compute-agent/main.go": "// Command compute-agent is the daemon.\npackage main"}, nil},
	{"comments", "none", files{"pkg/agent/a.go": `package agent`}, []string{`begins "Package agent "`}},
	{"comments", "of something else", files{"pkg/agent/a.go": "// Package agents runs verbs.\npackage agent"}, []string{`begins "Package agent "`}},
	{"comments", "not attached", files{"pkg/agent/a.go": "// Package agent runs verbs.\n\npackage agent"}, []string{"pkg/agent has no"}},
	{"comments", "a command's name", files{"cmd/compute-agent/main.go": "// Package main is the daemon.\npackage main"}, []string{`"Command compute-agent "`}},
	{"comments", "in a test only", files{"pkg/agent/a.go": `package agent`, "pkg/agent/a_test.go": "// Package agent runs verbs.\npackage agent"}, []string{"pkg/agent has no"}},
	{"comments", "nothing but tests", files{"test/e2e/a_test.go": `package e2e`}, nil},

	{"sleep", "in a test", files{"pkg/agent/a_test.go": `package agent; import "time"; func f() { time.Sleep(1) }`}, []string{"time.Sleep"}},
	{"sleep", "in a bubble", files{"pkg/agent/a_test.go": `package agent; import ("testing/synctest"; "time"); func f() { time.Sleep(1); synctest.Wait() }`}, nil},
	{"sleep", "under another name", files{"pkg/agent/a_test.go": `package agent; import clock "time"; var nap = clock.Sleep`}, []string{"time.Sleep"}},
	{"sleep", "green's own", files{"pkg/agent/a_test.go": `package agent; import "M/pkg/green"; func f() { green.Sleep(1) }`}, nil},
	{"sleep", "in code", files{"pkg/agent/a.go": `package agent; import "time"; func f() { time.Sleep(1) }`}, []string{"time.Sleep"}},
	{"sleep", "in green", files{"pkg/green/a.go": `package green; import "time"; func f() { time.Sleep(1) }`}, nil},
	{"sleep", "in green's tests", files{"pkg/green/a_test.go": `package green; import "time"; func f() { time.Sleep(1) }`}, []string{"time.Sleep"}},
	{"sleep", "in the lab", files{"test/lab/a_test.go": `package lab; import "time"; func f() { time.Sleep(1) }`}, []string{"time.Sleep"}},

	{"size", "a screen", files{"pkg/agent/a.go": "package agent\nfunc f() {\n" + pad(maxFuncLines-2) + "}\n"}, nil},
	{"size", "a line more", files{"pkg/agent/a.go": "package agent\nfunc f() {\n" + pad(maxFuncLines-1) + "}\n"}, []string{"f has 61 lines"}},
	{"size", "a test's table", files{"pkg/agent/a_test.go": "package agent\nfunc f() {\n" + pad(maxFuncLines-1) + "}\n"}, nil},
	{"size", "a test's novel", files{"pkg/agent/a_test.go": "package agent\nfunc f() {\n" + pad(maxTestFuncLines) + "}\n"}, []string{"f has 122 lines"}},
	{"size", "a long file", files{"pkg/agent/a.go": "package agent\n" + strings.Repeat("// x\n", maxFileLines)}, []string{"lines, 500 are allowed"}},
	{"size", "a long test file", files{"pkg/agent/a_test.go": "package agent\n" + strings.Repeat("// x\n", maxTestFileLines)}, []string{"lines, 1000 are allowed"}},
	{"size", "generated", files{"pkg/agent/a.go": "// Code generated by x. DO NOT EDIT.\n\npackage agent\n" + strings.Repeat("// x\n", maxFileLines)}, nil},
}

// build parses a tree that a test made up.
func build(t *testing.T, fs files) tree {
	t.Helper()
	made := tree{module: module}
	fset := token.NewFileSet()
	for name, text := range fs {
		s, err := parse(fset, "", name, strings.ReplaceAll(text, `"M/`, `"`+module+`/`))
		if err != nil {
			t.Fatal(err)
		}
		made.files = append(made.files, s)
	}
	return made
}

func TestRulesBite(t *testing.T) {
	bitten := make(map[string]bool)
	for _, b := range bites {
		t.Run(b.rule+"/"+b.name, func(t *testing.T) {
			got := violations(build(t, b.files), ruleNamed(t, b.rule), nil, nil)
			if len(got) != len(b.want) {
				t.Fatalf("%d violations, want %d: %v", len(got), len(b.want), got)
			}
			for i, v := range got {
				if text := v.String(); !strings.Contains(text, b.want[i]) || v.why == "" || v.do == "" || v.line < 1 {
					t.Errorf("the violation says\n%s\nwant %q, a line, a reason and what to do", text, b.want[i])
				}
			}
		})
		bitten[fmt.Sprint(b.rule, len(b.want) > 0)] = true
	}
	for _, r := range rules {
		if !bitten[r.name+"true"] || !bitten[r.name+"false"] {
			t.Errorf("the rule %q isn't shown both to bite and to let pass", r.name)
		}
	}
}

func TestExemption(t *testing.T) {
	made := build(t, files{"pkg/agent/a.go": `package agent; func init() {}`, "pkg/agent/b.go": `package agent; func init() {}`})
	exempt := exemption{"init", "pkg/agent/a.go", "shown here"}
	other := exemption{"go", "pkg/agent/b.go", "another rule"}
	used := make(map[exemption]bool)
	got := violations(made, ruleNamed(t, "init"), []exemption{exempt, other}, used)
	if len(got) != 1 || got[0].file != "pkg/agent/b.go" {
		t.Errorf("violations = %v, want the one of b.go", got)
	}
	if !used[exempt] || used[other] {
		t.Errorf("used exemptions = %v, want the one of a.go", used)
	}
}

func ruleNamed(t *testing.T, name string) rule {
	t.Helper()
	for _, r := range rules {
		if r.name == name {
			return r
		}
	}
	t.Fatalf("no rule is called %q", name)
	return rule{}
}
