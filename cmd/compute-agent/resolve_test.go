package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func TestConfirmTakesOnlyYes(t *testing.T) {
	for answer, yes := range map[string]bool{"y\n": true, " YES \n": true, "y": true, "": false, "\n": false, "n\n": false, "yesterday\n": false} {
		var asked strings.Builder
		a := newApp(strings.NewReader(answer), &asked, &asked, nil)
		err := a.confirm("Really?")
		if (err == nil) != yes || !yes && !errors.Is(err, fault.Cancelled) || !strings.Contains(asked.String(), "Really? [y/N]") {
			t.Errorf("confirm with %q = %v, asked %q", answer, err, asked.String())
		}
	}
}

func TestResolveShowsBothHosts(t *testing.T) {
	var b strings.Builder
	resolveFacts(&b, api.ResolveResult{
		Source: "moving", Dest: "unknown", Outcome: "unknown",
		Migration: instance.Migration{
			UUID: "M", Instance: "I", Source: "node1", Dest: "node2", Status: instance.MigrationError, UpdatedAt: time.Unix(0, 0),
			Fault: fault.New(fault.Internal, "live_migration", "M", "nobody answered"),
		},
	})
	for _, want := range []string{"On node1", "the guest is moving", "On node2", "the guest is unknown", "nobody answered", "node2 owns it"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the facts lack %q:\n%s", want, b.String())
		}
	}
	if got := statusText(instance.Migration{Status: instance.MigrationError}); got != "error (resolve it)" {
		t.Errorf("status of a frozen migration: %q", got)
	}
}
