package virttest

import (
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Rig is what the suite runs on: two hosts that can reach each other and guests
// that both can run. Source, Dest and Spec are required.
type Rig struct {
	Source, Dest Driver

	// Spec gives a spec with a UUID never used before, which both hosts can run and
	// whose taps exist on both. The guest is small (128 MiB) and writes to its console.
	Spec func() instance.Spec

	// Foreign makes a domain without our metadata on Source, removes it when the test
	// ends, and gives its id. nil: the case of the foreign domain is left out.
	Foreign func(t *testing.T) string

	// Port gives a port whose tap exists on Source, for a guest that lets go of interfaces
	// when asked. nil, or a Source that is no [Ports]: the case of ports is left out.
	Port func() instance.Port

	// Tick is a text that the guest writes to its console once it is up, "tick" if empty.
	Tick string

	// Shutdown says that the guest, once it is up, answers the ACPI power button.
	Shutdown bool

	// PostCopy says that both hosts can do post-copy.
	PostCopy bool

	// Break breaks the connection of every post-copy that runs from Source to Dest, so that both
	// ends notice, and lets no new one come about until heal. nil: that case is left out.
	Break func(t *testing.T) (heal func())

	// Wait bounds each wait of the suite, 60 s if zero.
	Wait time.Duration

	// SlowMiB is a bandwidth (MiB/s) at which the guest moves for at least five seconds, so that
	// its migration can be touched in the middle; 8 if zero.
	SlowMiB uint64
}

// Runner runs one named case as a subtest of t. See [Suite] and [SuiteWith].
type Runner func(t *testing.T, name string, f func(t *testing.T))

// Suite tests that the drivers of a rig keep the promises of package virt and of
// [Driver]. newRig is called once for each case; what it starts it ends in t.Cleanup.
// Every wait is bounded by [Rig.Wait].
func Suite(t *testing.T, newRig func(t *testing.T) Rig) {
	t.Helper()
	SuiteWith(t, func(t *testing.T, name string, f func(t *testing.T)) {
		t.Helper()
		t.Run(name, f)
	}, newRig)
}

// SuiteWith is Suite with a runner of the caller's choice, for example one that
// gives each case its own testing/synctest bubble.
func SuiteWith(t *testing.T, run Runner, newRig func(t *testing.T) Rig) {
	t.Helper()
	for _, c := range cases() {
		run(t, c.name, func(t *testing.T) {
			t.Helper()
			rig := newRig(t)
			if c.needs != nil && !c.needs(rig) {
				t.Logf("left out: this rig has no %s", c.name)
				return
			}
			c.test(newBench(t, rig))
		})
	}
}

// testCase is one promise; needs tells whether a rig can show it (nil: always).
type testCase struct {
	name  string
	test  func(b *bench)
	needs func(Rig) bool
}

func cases() []testCase {
	all := []testCase{
		{name: "define lookup list undefine", test: testDefine},
		{name: "undefine is idempotent and spares files", test: testUndefine},
		{name: "redefine a running guest", test: testRedefine},
		{name: "metadata generation", test: testGeneration},
		{name: "not found everywhere", test: testNotFound},
		{name: "check gives every reason", test: testCheck},
		{name: "foreign domain", test: testForeign, needs: func(r Rig) bool { return r.Foreign != nil }},
		{name: "host facts", test: testHost},
		{name: "start and destroy", test: testStartDestroy},
		{name: "pause and unpause", test: testPause},
		{name: "wrong states", test: testWrongStates},
		{name: "save and restore", test: testSave},
		{name: "console", test: testConsole},
		{name: "stats", test: testStats},
		{name: "ports come and go", test: testPorts, needs: hasPorts},
		{name: "shutdown by ACPI", test: testShutdown, needs: func(r Rig) bool { return r.Shutdown }},
		{name: "events in order", test: testEvents},
		{name: "events end with cancel", test: testEventsCancel},
	}
	return append(all, moverCases()...)
}

func moverCases() []testCase {
	return []testCase{
		{name: "prepare incoming is idempotent", test: testPrepare},
		{name: "live migration", test: testMigrate},
		{name: "live migration there and back", test: testRoundTrip},
		{name: "job statistics move", test: testStatistics},
		{name: "abort", test: testAbort},
		{name: "bandwidth and downtime are steered", test: testSteer},
		{name: "compression", test: testCompression},
		{name: "a paused guest stays paused", test: testMigratePaused},
		{name: "two migrations of one guest", test: testTwice},
		{name: "no job", test: testNoJob},
		{name: "the job outlives its caller", test: testCallerLeaves},
		{name: "migrate to nowhere", test: testMigrateNowhere},
		{name: "post-copy", test: testPostCopy, needs: func(r Rig) bool { return r.PostCopy }},
		{name: "a broken post-copy is taken up", test: testBrokenPostCopy, needs: func(r Rig) bool { return r.PostCopy && r.Break != nil }},
	}
}
