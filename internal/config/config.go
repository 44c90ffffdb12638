// Package config says how compute-agent is configured: which options there are,
// what they mean and their defaults, each stated once, as the tags of [Config];
// and reads them from one TOML file, the environment and flags, each of which
// wins over the one before it.
//
// An option is a field with tags:
//
//	key      its name in the file; with the section it is section.key
//	default  its default, as it would be written in the environment
//	doc      what it does, one sentence without a dot
//	nova     nova's option of the same meaning, when it has another name or section
//	oneof    the words it may be
//	min      the least it may be
//
// docs/configuration.md, systemd/compute-agent.toml and `compute-agent config show`
// are made from these tags. A key that does not exist is an error with its
// position, and so is a value of the wrong type.
package config

import "time"

// DefaultFile is read when no other file is named and it exists.
const DefaultFile = "/etc/compute-agent/compute-agent.toml"

// EnvPrefix begins the names of environment variables: COMPUTE_AGENT_RPC_URL is rpc.url.
const EnvPrefix = "COMPUTE_AGENT_"

// Config is everything that can be configured. The zero Config is not lawful;
// [Load] fills it.
type Config struct {
	Agent     Agent     `key:"agent" doc:"The agent itself."`
	RPC       RPC       `key:"rpc" doc:"The bus between controllers and agents: NATS."`
	Libvirt   Libvirt   `key:"libvirt" doc:"The libvirt driver; read when agent.driver is libvirt."`
	Fake      Fake      `key:"fake" doc:"The fake driver, which simulates hypervisors; read when agent.driver is fake."`
	Migration Migration `key:"migration" doc:"Live migration. The options that are called as nova's mean what nova's mean."`
	Reboot    Reboot    `key:"reboot" doc:"Rebooting and powering off."`
	VIF       VIF       `key:"vif" doc:"Network interfaces of guests."`
	Log       Log       `key:"log" doc:"What the agent says of itself, on standard error."`
}

// Agent is the section agent.
type Agent struct {
	Host                  string        `key:"host" doc:"the name this host has on the bus; empty: the name the operating system gives"`
	Driver                string        `key:"driver" default:"libvirt" oneof:"libvirt fake" doc:"which hypervisor this agent drives"`
	StateDir              string        `key:"state_dir" default:"/var/lib/compute-agent" doc:"where the journal is kept; one agent has it for itself"`
	ReportInterval        time.Duration `key:"report_interval" default:"10s" min:"100ms" nova:"report_interval" doc:"how often the host reports that it is there, beside each change"`
	ServiceDownTime       time.Duration `key:"service_down_time" default:"60s" min:"1s" nova:"service_down_time" doc:"a host that has not reported for longer counts as down"`
	ReconcileEvery        time.Duration `key:"reconcile_interval" default:"10m" min:"1s" nova:"sync_power_state_interval" doc:"how often the journal is compared with what the hypervisor has"`
	MaxAcceptedTasks      int           `key:"max_accepted_tasks" default:"10000" min:"1" doc:"no further casts are read while so many are accepted and not ended"`
	CastExpiry            time.Duration `key:"cast_default_expiry" default:"24h" min:"1s" doc:"a cast that says nothing about it is refused when it is read after so long"`
	StopTimeout           time.Duration `key:"stop_timeout" default:"5s" min:"1s" doc:"how long a stop may take; migrations go on in libvirt and are taken up again at the next start"`
	TaskRetention         time.Duration `key:"task_retention" default:"24h" min:"1m" doc:"how long requests and migrations that have ended are remembered: so long a request that is sent again gets the same outcome"`
	TasksKept             int           `key:"tasks_kept" default:"100000" min:"1" doc:"and how many of such requests at most"`
	MigrationsKept        int           `key:"migrations_kept" default:"10000" min:"1" doc:"and how many of such migrations"`
	InventoryWait         time.Duration `key:"inventory_wait" default:"10s" min:"1ms" doc:"how long requests of an earlier run wait at a start for the hypervisor to be looked at"`
	ReviewInterval        time.Duration `key:"review_interval" default:"60s" min:"1s" doc:"how often a migration whose outcome is unknown is looked at again"`
	ArrivalTimeout        time.Duration `key:"arrival_timeout" default:"60s" min:"1s" doc:"how long a request about a guest waits for the end of its own arrival"`
	LookTimeout           time.Duration `key:"look_timeout" default:"10s" min:"1ms" doc:"how long the look at an instance may take when its request ends"`
	CleanupTimeout        time.Duration `key:"cleanup_timeout" default:"120s" min:"1s" doc:"how long removing what a failed build left may take"`
	PublishTimeout        time.Duration `key:"publish_timeout" default:"5s" min:"1ms" doc:"how long up to 1,024 events, or 256 view entries, may take to be stored at once; it is tried without end"`
	ViewInterval          time.Duration `key:"view_interval" default:"200ms" min:"1ms" doc:"time between two rounds of writing views"`
	RetryFirst            time.Duration `key:"retry_first" default:"100ms" min:"1ms" doc:"the first pause after the bus or the journal failed; the next ones are longer"`
	RetryLimit            time.Duration `key:"retry_limit" default:"5s" min:"1ms" doc:"and the longest one"`
	RepairWorkers         int           `key:"repair_workers" default:"8" min:"1" doc:"instances that are repaired at a time after a comparison"`
	JournalTimeout        time.Duration `key:"journal_timeout" default:"30s" min:"1s" doc:"how long one write that must not be lost may take before it is said and tried again"`
	JournalLockTimeout    time.Duration `key:"journal_lock_timeout" default:"1s" min:"1ms" doc:"how long a start waits for another process that has the journal open"`
	JournalBatch          int           `key:"journal_batch" default:"256" min:"1" doc:"the most writes that share one fsync"`
	JournalCompactMiB     int           `key:"journal_compact_above_mib" default:"64" min:"0" doc:"a journal that is so long, and more than half free, is made shorter at a start; 0: never"`
	JournalCompactTimeout time.Duration `key:"journal_compact_timeout" default:"30s" min:"1s" doc:"how long that may take before it is left for the next start"`
	ReservedMemory        int           `key:"reserved_host_memory_mb" default:"512" min:"0" doc:"memory in MiB that guests do not get"`
	ReservedCPUs          int           `key:"reserved_host_cpus" default:"0" min:"0" doc:"CPUs that guests do not get"`
	CPURatio              float64       `key:"cpu_allocation_ratio" default:"16" min:"0.01" doc:"virtual CPUs for each CPU of the host"`
	RAMRatio              float64       `key:"ram_allocation_ratio" default:"1.5" min:"0.01" doc:"memory that is given to guests, for each MiB of the host"`
}

// RPC is the section rpc.
type RPC struct {
	URL             string        `key:"url" default:"nats://127.0.0.1:4222" doc:"NATS servers, separated by commas; embedded: a server inside this process, for one machine, demos and tests"`
	Prefix          string        `key:"prefix" default:"compute" doc:"begins every subject; streams and buckets are called after it"`
	Credentials     string        `key:"credentials_file" doc:"NATS credentials (JWT and seed) to log in with"`
	NKey            string        `key:"nkey_file" doc:"NKey seed to log in with"`
	TLSCA           string        `key:"tls_ca" doc:"certificates that the servers must be signed by; empty: the system's"`
	TLSCert         string        `key:"tls_cert" doc:"certificate to log in with; needs tls_key"`
	TLSKey          string        `key:"tls_key" doc:"key of tls_cert"`
	ConnectTimeout  time.Duration `key:"connect_timeout" default:"2s" min:"1ms" doc:"how long one attempt to reach a server may take; the agent tries without end"`
	StartWait       time.Duration `key:"start_wait" default:"60s" min:"1ms" doc:"how long a start waits for a bus that does not answer yet"`
	CallTimeout     time.Duration `key:"call_timeout" default:"60s" min:"1ms" nova:"rpc_response_timeout" doc:"how long a call to another agent may take when nothing else bounds it"`
	AckWait         time.Duration `key:"ack_wait" default:"5s" min:"100ms" doc:"a cast that is not acknowledged comes again after so long; a start waits for such casts up to three times as long"`
	Listen          string        `key:"embedded_listen" default:"127.0.0.1:4222" doc:"where the embedded server listens; loopback only, it has no authentication"`
	CastsMaxAge     time.Duration `key:"casts_max_age" default:"168h" min:"1m" doc:"how long the embedded server and nats-setup keep casts that nobody reads"`
	EventsMaxAge    time.Duration `key:"events_max_age" default:"24h" min:"1m" doc:"how long the embedded server and nats-setup keep events"`
	Replicas        int           `key:"replicas" default:"0" min:"0" doc:"copies of streams and buckets that nats-setup makes, 3 on a cluster; 0: 1 for new ones, the others keep theirs"`
	Batches         string        `key:"batches" default:"keep" oneof:"keep on off" doc:"on: streams and buckets that nats-setup makes take many messages with one confirmation, so bursts cost agents less; every server must be NATS 2.14 or newer. off: they take none. keep: what is there stays, what is new takes none. The embedded server's do"`
	ReconnectLimit  time.Duration `key:"reconnect_limit" default:"5s" min:"1ms" doc:"the longest pause between two attempts to reach a server again; they never end"`
	PingInterval    time.Duration `key:"ping_interval" default:"10s" min:"10ms" doc:"how often a silent connection is tried; two pings without an answer end it"`
	PublishTimeout  time.Duration `key:"publish_timeout" default:"5s" min:"1ms" doc:"how long a stream may take to confirm a message, and to answer a question"`
	ConflictTimeout time.Duration `key:"conflict_timeout" default:"250ms" min:"1ms" doc:"how long a start waits for an answer of another agent with the same host name"`
	Heartbeat       time.Duration `key:"heartbeat" default:"5s" min:"10ms" doc:"a reader of a stream whose server says nothing for twice as long begins afresh"`
}

// Libvirt is the section libvirt.
type Libvirt struct {
	URI                string        `key:"connection_uri" default:"qemu:///system" doc:"the hypervisor that libvirtd is asked for"`
	Socket             string        `key:"socket" default:"/run/libvirt/libvirt-sock" doc:"the socket of the local libvirtd or virtqemud"`
	VirtType           string        `key:"virt_type" default:"auto" oneof:"auto kvm qemu" doc:"kvm, qemu (emulated, slow), or auto: kvm where the machine has it"`
	Machine            string        `key:"hw_machine_type" default:"q35" doc:"the machine type of guests that name none"`
	CPUModel           string        `key:"cpu_model" default:"qemu64" doc:"the CPU of emulated guests that name none"`
	InstancesPath      string        `key:"instances_path" default:"/var/lib/compute-agent/instances" doc:"where disks, consoles and other files of instances are kept; the same on all hosts that guests move between"`
	LiveMigrationURI   string        `key:"live_migration_uri" default:"qemu+tls://%s/system" doc:"where guests are sent to this host; %s is live_migration_inbound_addr"`
	InboundAddr        string        `key:"live_migration_inbound_addr" doc:"the address at which this host receives guests; empty: its host name"`
	NativeTLS          bool          `key:"live_migration_with_native_tls" default:"false" doc:"guests leave over QEMU's own TLS, memory and disks; both hosts need the certificates of tls_dir"`
	TLSDir             string        `key:"tls_dir" default:"/etc/pki/qemu" doc:"where QEMU's certificates are, as in qemu.conf's migrate_tls_x509_cert_dir: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem; looked at before a migration"`
	CallTimeout        time.Duration `key:"call_timeout" default:"30s" min:"1s" doc:"how long one call may take before the connection is given up and made again; perform has no such limit"`
	ConnectTimeout     time.Duration `key:"connect_timeout" default:"10s" min:"100ms" doc:"how long connecting may take; it is tried without end"`
	CallsPerConnection int           `key:"calls_per_connection" default:"4" min:"1" doc:"calls in flight on one connection; libvirtd's max_client_requests is 5"`
	MaxMigrations      int           `key:"max_migrations" default:"4" min:"1" doc:"migrations in libvirt at a time, each on a connection of its own; not less than migration.max_concurrent_live_migrations"`
	StartTimeout       time.Duration `key:"start_timeout" default:"5m" min:"1s" doc:"how long starting or restoring a guest may take"`
	DestroyTimeout     time.Duration `key:"destroy_timeout" default:"60s" min:"1s" doc:"how long taking the power of a guest may take; libvirt waits up to 40 s for a stuck QEMU"`
	SaveTimeout        time.Duration `key:"save_timeout" default:"30m" min:"1s" doc:"how long writing the memory of a guest to disk may take"`
	MigrateTimeout     time.Duration `key:"migrate_timeout" default:"24h" min:"1m" doc:"how long one migration may be in libvirt; it is ended long before by its policy"`
	DetachTimeout      time.Duration `key:"device_detach_timeout" default:"20s" min:"1s" doc:"how long a guest may take to let go of an interface before it is asked again"`
	DetachAttempts     int           `key:"device_detach_attempts" default:"8" min:"1" doc:"how often it is asked"`
	FilesTimeout       time.Duration `key:"files_timeout" default:"60s" min:"1s" doc:"how long making one overlay may take"`
	QemuImg            string        `key:"qemu_img" default:"qemu-img" doc:"the program that makes overlays"`
	PingInterval       time.Duration `key:"ping_interval" default:"10s" min:"100ms" doc:"how often an idle connection is tried"`
	ReconnectFirst     time.Duration `key:"reconnect_first" default:"200ms" min:"1ms" doc:"the first pause between two attempts to connect; the next ones are longer"`
	ReconnectLimit     time.Duration `key:"reconnect_limit" default:"10s" min:"1ms" doc:"and the longest one"`
	EventBacklog       int           `key:"event_backlog" default:"10000" min:"1" doc:"events that may wait to be looked at before the connection is made anew"`
}

// Fake is the section fake.
type Fake struct {
	Hosts        int    `key:"hosts" default:"1" min:"1" doc:"simulate so many hosts in one process, called <host>-1, <host>-2, …; 1 keeps the plain name"`
	VCPUs        int    `key:"vcpus" default:"64" min:"1" doc:"CPUs of a simulated host"`
	MemoryMiB    int    `key:"memory_mib" default:"262144" min:"1" doc:"memory of a simulated host"`
	DiskGiB      int    `key:"disk_gib" default:"4096" min:"1" doc:"disk of a simulated host"`
	BandwidthMiB int    `key:"bandwidth_mib" default:"1024" min:"1" doc:"MiB/s that a simulated migration moves"`
	Listen       string `key:"listen" default:"127.0.0.1:0" doc:"loopback address where guests of other processes may arrive; empty: guests move within this process only"`
}

// Migration is the section migration.
type Migration struct {
	Outbound          int           `key:"max_concurrent_live_migrations" default:"2" min:"1" doc:"how many guests may leave at a time; others queue"`
	Inbound           int           `key:"max_concurrent_inbound_migrations" default:"2" min:"1" doc:"how many guests may arrive at a time; a source that asks for more is told to try later"`
	Policy            string        `key:"policy" default:"adaptive" oneof:"adaptive nova pause_now post_copy_now" doc:"how a migration is made to end: adaptive watches what remains, nova follows nova's time steps"`
	OnStall           string        `key:"on_stall" default:"abort" oneof:"abort pause post_copy" nova:"libvirt.live_migration_timeout_action" doc:"what is done with a migration that gets no closer to its end, or that passes its completion timeout: end it, pause the guest until it is over, or post-copy where that is allowed"`
	Bandwidth         int           `key:"live_migration_bandwidth" default:"0" min:"0" doc:"MiB/s; 0: as much as there is"`
	Budget            int           `key:"live_migration_total_bandwidth" default:"0" min:"0" doc:"MiB/s of all migrations that leave this host at the same time: divided fairly among them, anew whenever one begins or ends; 0: not limited"`
	PostCopyBandwidth int           `key:"live_migration_post_copy_bandwidth" default:"0" min:"0" doc:"MiB/s of what is sent ahead in post-copy, where live_migration_bandwidth does not hold; pages that the guest asks for are never slowed; 0: as much as there is"`
	Downtime          time.Duration `key:"live_migration_downtime" default:"500ms" min:"100ms" doc:"policy nova: the longest pause of the guest at the switch"`
	DowntimeSteps     int           `key:"live_migration_downtime_steps" default:"10" min:"3" doc:"policy nova: in how many steps the permitted pause is raised to that"`
	DowntimeDelay     time.Duration `key:"live_migration_downtime_delay" default:"75s" min:"3s" doc:"policy nova: time between two steps, per GiB"`
	CompletionTimeout time.Duration `key:"live_migration_completion_timeout" default:"800s" min:"0s" doc:"how long a migration may take, per GiB; 0: without end"`
	PermitPostCopy    bool          `key:"live_migration_permit_post_copy" default:"false" doc:"allow post-copy, after which there is no way back"`
	PermitAutoConv    bool          `key:"live_migration_permit_auto_converge" default:"false" doc:"allow QEMU to slow the guest down; not used when post-copy is allowed"`
	Parallel          int           `key:"parallel_connections" default:"0" min:"0" doc:"connections that the memory is spread over; 0: one, as without multifd, but 4 with libvirt.live_migration_with_native_tls; post-copy always has one"`
	Compression       string        `key:"compression" default:"none" oneof:"none xbzrle mt zlib zstd" doc:"how the memory is made smaller on its way, for migrations that don't name it: xbzrle sends what changed in a page that was sent before, mt every page on threads of its own (QEMU before 9.1), zlib and zstd every page on each of the parallel connections (libvirt 9.4); where it doesn't go with post-copy or with what a request names there is none"`
	ClaimTimeout      time.Duration `key:"claim_timeout" default:"600s" min:"1s" doc:"a destination asks the source about a guest that has been announced for so long and has not come"`
	PeerTimeout       time.Duration `key:"peer_timeout" default:"60s" min:"1s" doc:"how long one question to the other host may take; waiting for ports is beside it"`
	MonitorInterval   time.Duration `key:"monitor_interval" default:"500ms" min:"10ms" doc:"how often a running migration is looked at, beside each event"`
	ProgressInterval  time.Duration `key:"progress_interval" default:"1s" min:"10ms" doc:"how often the progress of one migration is published at most; a change of its status or phase is published at once"`
	ProgressRate      int           `key:"progress_rate" default:"500" min:"1" doc:"how many times a second progress is published for all migrations together; with more of them than that each is published less often"`
	CheckTimeout      time.Duration `key:"check_timeout" default:"60s" min:"1s" doc:"how long one check of the destination may take"`
	BusyTimeout       time.Duration `key:"busy_timeout" default:"600s" min:"1s" doc:"how long a source comes back to a destination that has no room for one more migration"`
	PrepareTimeout    time.Duration `key:"prepare_timeout" default:"1800s" min:"1s" nova:"long_rpc_timeout" doc:"how long the destination may prepare, waiting for ports included"`
	RecoverTimeout    time.Duration `key:"recover_timeout" default:"1h" min:"1s" doc:"how long a broken post-copy is taken up again and again before it is left to people"`
	SettleTimeout     time.Duration `key:"settle_timeout" default:"600s" min:"1s" doc:"how long facts are gathered before an outcome is called unknown"`
	PostTimeout       time.Duration `key:"post_timeout" default:"24h" min:"1s" doc:"how long a source asks the destination to own the guest"`
	RollbackTimeout   time.Duration `key:"rollback_timeout" default:"120s" min:"1s" doc:"how long a source asks the destination to undo"`
	CleanTimeout      time.Duration `key:"clean_timeout" default:"24h" min:"1s" doc:"how long a source tries to remove what stayed behind"`
	HypervisorTimeout time.Duration `key:"hypervisor_timeout" default:"30s" min:"100ms" doc:"how long one short question to the hypervisor may take"`
	WorkerGrace       time.Duration `key:"worker_grace" default:"5s" min:"1ms" doc:"how long the error of a failed job is waited for once its end was told"`
	ForceTimeout      time.Duration `key:"force_complete_timeout" default:"10s" min:"1ms" doc:"how long force-complete waits for its confirmation"`
	RetryFirst        time.Duration `key:"retry_first" default:"1s" min:"1ms" doc:"the first pause between two tries of a question; the next ones are longer"`
	RetryLimit        time.Duration `key:"retry_limit" default:"30s" min:"1ms" doc:"and the longest one"`
	AdaptiveFirst     time.Duration `key:"adaptive_downtime_first" default:"300ms" min:"1ms" doc:"policy adaptive: the pause of the guest that is permitted first"`
	AdaptiveStep      time.Duration `key:"adaptive_downtime_step" default:"150ms" min:"1ms" doc:"policy adaptive: by how much it is raised at a time"`
	AdaptiveLimit     time.Duration `key:"adaptive_downtime_limit" default:"1050ms" min:"1ms" doc:"policy adaptive: and how far"`
	AdaptiveIteration int           `key:"adaptive_start_iteration" default:"3" min:"1" doc:"policy adaptive: nothing is raised before the memory was gone through so often"`
	AdaptiveCooldown  time.Duration `key:"adaptive_cooldown" default:"10s" min:"1ms" doc:"policy adaptive: time between two raises"`
	AdaptiveStall     time.Duration `key:"adaptive_stall_after" default:"40s" min:"1s" doc:"policy adaptive: on_stall follows when what remains has not become less for so long"`
	AdaptiveMargin    float64       `key:"adaptive_stall_margin" default:"0.04" min:"0.001" doc:"policy adaptive: by what part it must be less to count"`
}

// Reboot is the section reboot.
type Reboot struct {
	WaitSoft        time.Duration `key:"wait_soft_reboot_seconds" default:"120s" min:"0s" nova:"libvirt.wait_soft_reboot_seconds" doc:"how long a soft reboot may take before it becomes a hard one"`
	ShutdownTimeout time.Duration `key:"shutdown_timeout" default:"60s" min:"0s" nova:"shutdown_timeout" doc:"how long a guest may take to power off before the power is taken away"`
	RetryInterval   time.Duration `key:"shutdown_retry_interval" default:"10s" min:"1s" nova:"compute.shutdown_retry_interval" doc:"how often a guest that does not power off is asked again"`
	HardTimeout     time.Duration `key:"hard_timeout" default:"600s" min:"1s" doc:"how long a hard reboot may take in all, until the rebuilt guest runs"`
	Methods         string        `key:"shutdown_methods" default:"acpi agent" doc:"how a guest is asked to go off, in this order: acpi, agent, or both, separated by spaces"`
	MethodTimeout   time.Duration `key:"method_timeout" default:"30s" min:"100ms" doc:"how long a guest may ignore one of them before the next is tried too"`
	StartTimeout    time.Duration `key:"start_timeout" default:"120s" min:"1s" doc:"how long one start of a guest may take until it runs"`
	DestroyTimeout  time.Duration `key:"destroy_timeout" default:"60s" min:"1s" doc:"how long taking the power away may take"`
	CallTimeout     time.Duration `key:"call_timeout" default:"30s" min:"100ms" doc:"how long one short call to the hypervisor may take"`
	Interval        time.Duration `key:"interval" default:"500ms" min:"1ms" doc:"how often a guest that is waited for is looked at, beside each event"`
	MaxRetry        int           `key:"max_retry" default:"2" min:"0" doc:"how often a start or a destroy that failed is tried again"`
	RetryFirst      time.Duration `key:"retry_first" default:"1s" min:"1ms" doc:"the first pause between such tries; the next ones are longer"`
}

// VIF is the section vif.
type VIF struct {
	PluggingTimeout time.Duration `key:"vif_plugging_timeout" default:"300s" min:"0s" nova:"vif_plugging_timeout" doc:"how long the ports of a guest may take until they are ready"`
	PluggingFatal   bool          `key:"vif_plugging_is_fatal" default:"true" nova:"vif_plugging_is_fatal" doc:"whether a guest whose ports are not ready in time is given up"`
	MaxRetry        int           `key:"max_retry" default:"30" min:"0" nova:"live_migration_retry_count" doc:"how often plugging one port is tried again"`
	RetryInterval   time.Duration `key:"retry_interval" default:"200ms" min:"1ms" doc:"the first pause between two tries; the next ones are longer"`
	RetryLimit      time.Duration `key:"retry_limit" default:"5s" min:"1ms" doc:"and the longest one"`
	TryTimeout      time.Duration `key:"try_timeout" default:"10s" min:"1ms" doc:"how long one try of one port, or one look, may take"`
	UndoTimeout     time.Duration `key:"undo_timeout" default:"30s" min:"1ms" doc:"how long removing what a failed plug had made may take"`
	Interval        time.Duration `key:"interval" default:"500ms" min:"1ms" doc:"how often ports that are waited for are looked at"`
	Workers         int           `key:"workers" default:"8" min:"1" doc:"port updates that are worked on at a time"`
}

// Log is the section log.
type Log struct {
	Level  string `key:"level" default:"info" oneof:"debug info warning error" doc:"the least that is said"`
	Format string `key:"format" default:"auto" oneof:"auto text json journald" doc:"auto: journald under systemd, text on a terminal, JSON otherwise"`
}
