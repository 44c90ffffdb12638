package api

import (
	"slices"
	"strings"
	"sync"
)

// Style says how a method is carried.
type Style string

// The styles.
const (
	Call Style = "call" // answered, exactly once
	Cast Style = "cast" // carried out, its end learnt from task events
)

// The methods of version 1.0; names are nova's (design section 5).
const (
	BuildAndRunInstance        = "build_and_run_instance"
	TerminateInstance          = "terminate_instance"
	StartInstance              = "start_instance"
	StopInstance               = "stop_instance"
	RebootInstance             = "reboot_instance"
	PauseInstance              = "pause_instance"
	UnpauseInstance            = "unpause_instance"
	SuspendInstance            = "suspend_instance"
	ResumeInstance             = "resume_instance"
	LiveMigration              = "live_migration"
	LiveMigrationAbort         = "live_migration_abort"
	LiveMigrationForceComplete = "live_migration_force_complete"
	CheckMigrateSource         = "check_can_live_migrate_source"
	CheckMigrateDestination    = "check_can_live_migrate_destination"
	PreLiveMigration           = "pre_live_migration"
	PostLiveMigration          = "post_live_migration_at_destination"
	RollbackLiveMigration      = "rollback_live_migration_at_destination"
	LiveMigrationSetBandwidth  = "live_migration_set_bandwidth"
	LiveMigrationRecover       = "live_migration_recover"
	ResolveMigration           = "resolve_migration"
	ExternalInstanceEvent      = "external_instance_event"
	GetConsoleOutput           = "get_console_output"
	GetDiagnostics             = "get_diagnostics"
	ShowInstance               = "show_instance"
	ListInstances              = "list_instances"
	ListMigrations             = "list_migrations"
	ShowMigration              = "show_migration"
	GetHostInfo                = "get_host_info"
	GetAvailableResource       = "get_available_resource"
	SetHostEnabled             = "set_host_enabled"
)

// Method describes one method for callers, completion and the generated docs.
type Method struct {
	Name  string
	Style Style
	Peer  bool       // spoken between agents
	Doc   string     // one sentence
	Args  func() any // a new pointer to its argument type
	Reply func() any // a new pointer to its result type; nil: an empty object
	Since string     // the version that brought it; empty: 1.0
}

// Methods lists every method of this version, by name.
func Methods() []Method {
	all := append(append(verbs(), moves()...), reads()...)
	slices.SortFunc(all, func(a, b Method) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// byName is made once: every call and cast looks into it.
var byName = sync.OnceValue(func() map[string]Method {
	all := map[string]Method{}
	for _, m := range Methods() {
		all[m.Name] = m
	}
	return all
})

// Find gives the method of that name.
func Find(name string) (Method, bool) {
	m, ok := byName()[name]
	return m, ok
}

// Needs is the version that a request for a method says: the one that brought the
// method, not the sender's own, so that older agents take it too. What a later minor
// adds to the arguments they ignore.
func Needs(method string) string {
	if m, ok := Find(method); ok && m.Since != "" {
		return m.Since
	}
	return "1.0"
}

// PeerMethods names what one agent may ask of another, and its credential allows:
// the methods between agents, and the two of a controller's that a migration uses.
func PeerMethods() []string {
	names := []string{ExternalInstanceEvent, ShowMigration}
	for _, m := range Methods() {
		if m.Peer {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func args[T any]() any { return new(T) }

func verbs() []Method {
	one := args[InstanceArgs]
	return []Method{
		{Name: BuildAndRunInstance, Style: Cast, Doc: "Builds an instance from its spec and starts it.", Args: args[BuildArgs]},
		{Name: TerminateInstance, Style: Cast, Doc: "Stops an instance and removes everything of it.", Args: one},
		{Name: StartInstance, Style: Cast, Doc: "Starts an instance that is off.", Args: one},
		{Name: StopInstance, Style: Cast, Doc: "Asks the guest to go off, then takes the power away.", Args: args[StopArgs]},
		{Name: RebootInstance, Style: Cast, Doc: "Reboots SOFT (asks the guest, then HARD) or HARD (rebuilds the domain from its record).", Args: args[RebootArgs]},
		{Name: PauseInstance, Style: Cast, Doc: "Freezes the guest's CPUs.", Args: one},
		{Name: UnpauseInstance, Style: Cast, Doc: "Lets a paused guest go on.", Args: one},
		{Name: SuspendInstance, Style: Cast, Doc: "Saves the guest's memory to disk and stops it.", Args: one},
		{Name: ResumeInstance, Style: Cast, Doc: "Starts a suspended guest where it was.", Args: one},
		{Name: ExternalInstanceEvent, Style: Cast, Doc: "Tells of something that happened to an instance outside, e.g. network-vif-plugged.", Args: args[ExternalEventArgs]},
		{Name: SetHostEnabled, Style: Call, Doc: "Enables or disables the host for new instances and incoming migrations.", Args: args[HostEnabledArgs], Reply: args[HostView]},
	}
}

func moves() []Method {
	return []Method{
		{Name: LiveMigration, Style: Cast, Doc: "Moves a running instance to another host.", Args: args[MigrateArgs]},
		{Name: LiveMigrationAbort, Style: Cast, Doc: "Ends a migration that has not switched over yet; the guest stays.", Args: args[MigrationRefArgs]},
		{Name: LiveMigrationForceComplete, Style: Cast, Doc: "Makes a running migration end now, by post-copy where it is allowed, else by pausing the guest.", Args: args[MigrationRefArgs]},
		{Name: LiveMigrationSetBandwidth, Style: Cast, Doc: "Changes the bandwidth of a migration that is under way.", Args: args[BandwidthArgs]},
		{Name: LiveMigrationRecover, Style: Cast, Doc: "Takes up a post-copy whose connection broke, at once.", Args: args[MigrationRefArgs]},
		{Name: ResolveMigration, Style: Call, Doc: "The facts of both hosts on a migration whose outcome is unknown; with as, a person's decision.", Args: args[ResolveArgs], Reply: args[ResolveResult]},
		{Name: CheckMigrateSource, Style: Call, Doc: "Every reason of the source and the destination against a migration; changes nothing.", Args: args[MigrateArgs], Reply: args[CheckResult]},
		{Name: CheckMigrateDestination, Style: Call, Peer: true, Doc: "Every reason of the destination against a guest coming here.", Args: args[PeerMigrateArgs], Reply: args[CheckResult]},
		{Name: PreLiveMigration, Style: Call, Peer: true, Doc: "Claims room, makes files and ports for a guest that is to come.", Args: args[PeerMigrateArgs], Reply: args[PreparedResult]},
		{Name: PostLiveMigration, Style: Call, Peer: true, Doc: "Asks the destination whether it owns the guest now.", Args: args[PeerRefArgs], Reply: args[OwnedResult]},
		{Name: RollbackLiveMigration, Style: Call, Peer: true, Doc: "Undoes what pre_live_migration made.", Args: args[PeerRefArgs]},
	}
}

func reads() []Method {
	return []Method{
		{Name: GetConsoleOutput, Style: Call, Doc: "The last bytes of the guest's console.", Args: args[ConsoleArgs], Reply: args[ConsoleResult]},
		{Name: GetDiagnostics, Style: Call, Doc: "Counters of a running guest.", Args: args[InstanceArgs], Reply: args[DiagnosticsResult]},
		{Name: ShowInstance, Style: Call, Doc: "One instance, with its power state as the hypervisor has it.", Args: args[InstanceArgs], Reply: args[InstanceResult]},
		{Name: ListInstances, Style: Call, Doc: "All instances of the host.", Args: args[NoArgs], Reply: args[InstancesResult]},
		{Name: ListMigrations, Style: Call, Doc: "Migrations that this host conducts or receives, and those that ended lately.", Args: args[NoArgs], Reply: args[MigrationsResult]},
		{Name: ShowMigration, Style: Call, Doc: "One migration.", Args: args[ShowMigrationArgs], Reply: args[MigrationResult]},
		{Name: GetHostInfo, Style: Call, Doc: "The host as its view shows it, fresh.", Args: args[NoArgs], Reply: args[HostView]},
		{Name: GetAvailableResource, Style: Call, Doc: "What the host has and what is claimed of it.", Args: args[NoArgs], Reply: args[Resources]},
	}
}
