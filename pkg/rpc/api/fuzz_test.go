package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// fuzzMethod feeds bodies to one method's arguments as an agent reads them. Whatever
// comes: an answer of kind invalid_argument that fits into a message, or arguments
// that mean the same when they are written and read again.
func fuzzMethod(f *testing.F, name string) {
	f.Helper()
	m, ok := api.Find(name)
	if !ok {
		f.Fatalf("there is no method %s", name)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		args := m.Args()
		if err := api.Decode(name, body, args); err != nil {
			refusal(t, err)
			return
		}
		first, err := json.Marshal(args)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again := m.Args()
		if err := api.Decode(name, first, again); err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, first)
		}
		second, err := json.Marshal(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("read again it differs: %v %s", err, cmp.Diff(string(first), string(second)))
		}
	})
}

// refusal checks what a sender is told.
func refusal(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, fault.InvalidArgument) {
		t.Fatalf("kind %s, want invalid_argument: %v", fault.KindOf(err), err)
	}
	if raw, werr := json.Marshal(fault.Wire(err)); werr != nil || len(raw) == 0 || err.Error() == "" {
		t.Fatalf("the refusal can't be sent: %v", werr)
	}
}

// FuzzVersion reads version headers.
func FuzzVersion(f *testing.F) {
	f.Fuzz(func(t *testing.T, own, theirs string) {
		err := api.CheckVersion(own, theirs)
		if err != nil && !errors.Is(err, fault.InvalidArgument) && !errors.Is(err, fault.UnsupportedVersion) {
			t.Fatalf("CheckVersion(%q, %q) = %v", own, theirs, err)
		}
		if err == nil && own != "" && api.CheckVersion(own, own) != nil {
			t.Fatalf("%q takes %q and not itself", own, theirs)
		}
	})
}

// Each method has a target.
func TestEveryMethodIsFuzzed(t *testing.T) {
	source, err := os.ReadFile("fuzz_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range api.Methods() {
		words := strings.Split(m.Name, "_")
		for i, w := range words {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
		if target := "func Fuzz" + strings.Join(words, "") + "("; !strings.Contains(string(source), target) {
			t.Errorf("%s has no target: write %s", m.Name, target)
		}
	}
}

// FuzzBuildAndRunInstance reads the arguments of build_and_run_instance.
func FuzzBuildAndRunInstance(f *testing.F) { fuzzMethod(f, api.BuildAndRunInstance) }

// FuzzTerminateInstance reads the arguments of terminate_instance.
func FuzzTerminateInstance(f *testing.F) { fuzzMethod(f, api.TerminateInstance) }

// FuzzStartInstance reads the arguments of start_instance.
func FuzzStartInstance(f *testing.F) { fuzzMethod(f, api.StartInstance) }

// FuzzStopInstance reads the arguments of stop_instance.
func FuzzStopInstance(f *testing.F) { fuzzMethod(f, api.StopInstance) }

// FuzzRebootInstance reads the arguments of reboot_instance.
func FuzzRebootInstance(f *testing.F) { fuzzMethod(f, api.RebootInstance) }

// FuzzPauseInstance reads the arguments of pause_instance.
func FuzzPauseInstance(f *testing.F) { fuzzMethod(f, api.PauseInstance) }

// FuzzUnpauseInstance reads the arguments of unpause_instance.
func FuzzUnpauseInstance(f *testing.F) { fuzzMethod(f, api.UnpauseInstance) }

// FuzzSuspendInstance reads the arguments of suspend_instance.
func FuzzSuspendInstance(f *testing.F) { fuzzMethod(f, api.SuspendInstance) }

// FuzzResumeInstance reads the arguments of resume_instance.
func FuzzResumeInstance(f *testing.F) { fuzzMethod(f, api.ResumeInstance) }

// FuzzLiveMigration reads the arguments of live_migration.
func FuzzLiveMigration(f *testing.F) { fuzzMethod(f, api.LiveMigration) }

// FuzzLiveMigrationAbort reads the arguments of live_migration_abort.
func FuzzLiveMigrationAbort(f *testing.F) { fuzzMethod(f, api.LiveMigrationAbort) }

// FuzzLiveMigrationForceComplete reads the arguments of live_migration_force_complete.
func FuzzLiveMigrationForceComplete(f *testing.F) { fuzzMethod(f, api.LiveMigrationForceComplete) }

// FuzzLiveMigrationSetBandwidth reads the arguments of live_migration_set_bandwidth.
func FuzzLiveMigrationSetBandwidth(f *testing.F) { fuzzMethod(f, api.LiveMigrationSetBandwidth) }

// FuzzLiveMigrationRecover reads the arguments of live_migration_recover.
func FuzzLiveMigrationRecover(f *testing.F) { fuzzMethod(f, api.LiveMigrationRecover) }

// FuzzResolveMigration reads the arguments of resolve_migration.
func FuzzResolveMigration(f *testing.F) { fuzzMethod(f, api.ResolveMigration) }

// FuzzCheckCanLiveMigrateSource reads the arguments of check_can_live_migrate_source.
func FuzzCheckCanLiveMigrateSource(f *testing.F) { fuzzMethod(f, api.CheckMigrateSource) }

// FuzzCheckCanLiveMigrateDestination reads the arguments of check_can_live_migrate_destination.
func FuzzCheckCanLiveMigrateDestination(f *testing.F) { fuzzMethod(f, api.CheckMigrateDestination) }

// FuzzPreLiveMigration reads the arguments of pre_live_migration.
func FuzzPreLiveMigration(f *testing.F) { fuzzMethod(f, api.PreLiveMigration) }

// FuzzPostLiveMigrationAtDestination reads the arguments of post_live_migration_at_destination.
func FuzzPostLiveMigrationAtDestination(f *testing.F) { fuzzMethod(f, api.PostLiveMigration) }

// FuzzRollbackLiveMigrationAtDestination reads the arguments of rollback_live_migration_at_destination.
func FuzzRollbackLiveMigrationAtDestination(f *testing.F) { fuzzMethod(f, api.RollbackLiveMigration) }

// FuzzExternalInstanceEvent reads the arguments of external_instance_event.
func FuzzExternalInstanceEvent(f *testing.F) { fuzzMethod(f, api.ExternalInstanceEvent) }

// FuzzGetConsoleOutput reads the arguments of get_console_output.
func FuzzGetConsoleOutput(f *testing.F) { fuzzMethod(f, api.GetConsoleOutput) }

// FuzzGetDiagnostics reads the arguments of get_diagnostics.
func FuzzGetDiagnostics(f *testing.F) { fuzzMethod(f, api.GetDiagnostics) }

// FuzzShowInstance reads the arguments of show_instance.
func FuzzShowInstance(f *testing.F) { fuzzMethod(f, api.ShowInstance) }

// FuzzListInstances reads the arguments of list_instances.
func FuzzListInstances(f *testing.F) { fuzzMethod(f, api.ListInstances) }

// FuzzListMigrations reads the arguments of list_migrations.
func FuzzListMigrations(f *testing.F) { fuzzMethod(f, api.ListMigrations) }

// FuzzShowMigration reads the arguments of show_migration.
func FuzzShowMigration(f *testing.F) { fuzzMethod(f, api.ShowMigration) }

// FuzzGetHostInfo reads the arguments of get_host_info.
func FuzzGetHostInfo(f *testing.F) { fuzzMethod(f, api.GetHostInfo) }

// FuzzGetAvailableResource reads the arguments of get_available_resource.
func FuzzGetAvailableResource(f *testing.F) { fuzzMethod(f, api.GetAvailableResource) }

// FuzzSetHostEnabled reads the arguments of set_host_enabled.
func FuzzSetHostEnabled(f *testing.F) { fuzzMethod(f, api.SetHostEnabled) }
