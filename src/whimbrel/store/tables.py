"""The tables. JSON columns hold declared data that is read and written whole, never searched.

Times are epoch seconds (UTC, float). What OpenStack shows as states is derived from these rows, never stored.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- identity -------------------------------------------------------------------------------------

projects = Table(
    "projects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("description", Text, nullable=False, default=""),
    Column("enabled", Boolean, nullable=False, default=True),
)

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("password", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, default=True),
)

assignments = Table(
    "assignments",
    metadata,
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", String(32), ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(32), primary_key=True),
)

# --- what servers are made of ---------------------------------------------------------------------

flavors = Table(
    "flavors",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(255), nullable=False, unique=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("vcpus", Integer, nullable=False),
    Column("ram_mb", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("ephemeral_gb", Integer, nullable=False, default=0),
    Column("swap_mb", Integer, nullable=False, default=0),
    Column("public", Boolean, nullable=False, default=True),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("description", Text),
    Column("extra_specs", JSON, nullable=False, default=dict),
    Column("created_at", Float, nullable=False),
)

flavor_access = Table(
    "flavor_access",
    metadata,
    Column("flavor_id", String(255), ForeignKey("flavors.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", String(32), primary_key=True),
)

images = Table(
    "images",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(255)),
    Column("project_id", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("visibility", String(16), nullable=False),
    Column("disk_format", String(16)),
    Column("container_format", String(16)),
    Column("size_bytes", BigInteger),
    Column("virtual_size_bytes", BigInteger),
    Column("sha256", String(64)),
    Column("min_disk_gb", Integer, nullable=False, default=0),
    Column("min_ram_mb", Integer, nullable=False, default=0),
    Column("protected", Boolean, nullable=False, default=False),
    Column("hidden", Boolean, nullable=False, default=False),
    Column("tags", JSON, nullable=False, default=list),
    Column("properties", JSON, nullable=False, default=dict),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

networks = Table(
    "networks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("project_id", String(32), nullable=False),
    Column("shared", Boolean, nullable=False, default=True),
    Column("cidr", String(64), nullable=False),
    Column("gateway", String(64)),
    Column("mtu", Integer, nullable=False, default=1500),
    Column("created_at", Float, nullable=False),
)

ports = Table(
    "ports",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("network_id", String(36), ForeignKey("networks.id"), nullable=False),
    Column("server_id", String(36), nullable=False, index=True),
    Column("mac", String(17), nullable=False, unique=True),
    Column("address", String(64), nullable=False),
    Index("uq_ports_network_address", "network_id", "address", unique=True),
)

# --- hosts and claims -----------------------------------------------------------------------------

hosts = Table(
    "hosts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("service_uuid", String(36), nullable=False),
    Column("hypervisor_uuid", String(36), nullable=False),
    Column("address", String(255), nullable=False),
    Column("boot", String(64), nullable=False),
    Column("ledger", String(64), nullable=False),
    Column("protocols", JSON, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("ram_mb", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("reserved_vcpus", Integer, nullable=False),
    Column("reserved_ram_mb", Integer, nullable=False),
    Column("reserved_disk_gb", Integer, nullable=False),
    Column("cpu_ratio", Float, nullable=False),
    Column("ram_ratio", Float, nullable=False),
    Column("disk_ratio", Float, nullable=False),
    Column("architecture", String(32), nullable=False),
    Column("hypervisor", String(32), nullable=False),
    Column("hypervisor_version", Integer, nullable=False),
    Column("root_disk", String(16), nullable=False),
    Column("free_disk_gb", Integer, nullable=False),
    Column("uptime", String(255), nullable=False, default=""),
    Column("enabled", Boolean, nullable=False, default=True),
    Column("disabled_reason", Text),
    Column("forced_down", Boolean, nullable=False, default=False),
    Column("heard_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("claims_revision", Integer, nullable=False, default=0),
    Column("fenced_boot", String(64)),
    Column("fenced_at", Float),
    Column("fenced_by", String(16)),
    Column("fence_reason", Text),
    Column("lease_number", Integer, nullable=False, default=0),
    Column("lease_seconds", Float, nullable=False, default=0.0),
    Column("lease_kept", Boolean, nullable=False, default=False),
    Column("composed", Float, nullable=False, default=0.0),
    Column("channel", JSON),
    Column("uefi", Boolean, nullable=False, default=False),
    Column("tpm", Boolean, nullable=False, default=False),
)
"""`channel`: where the host's channels end, and by which keys it is known and may be given passes (see Heartbeat).
`fenced_*`: that this boot cannot run guests, when that was proved, by which kind of witness, and in its words.
`lease_number` grows with each renewal, so that a conductor sees by its own clock how long there was none;
`lease_seconds` is the longest of this boot, `lease_kept` what the host said last of its keeper.
`composed`: the host's own time since its boot, at which the newest heartbeat was composed."""

claims = Table(
    "claims",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("host", String(255), nullable=False, index=True),
    Column("server_id", String(36), nullable=False, index=True),
    Column("attempt", String(32), nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("ram_mb", Integer, nullable=False),
    Column("disk_gb", Integer, nullable=False),
    Column("owed", Boolean, nullable=False, default=False),
    Index("uq_claims_server_attempt_host", "server_id", "attempt", "host", unique=True),
)
"""Room set aside. `attempt` is the one that made it; `owed`: only the disk part is left, for files not yet gone."""

# --- servers --------------------------------------------------------------------------------------

servers = Table(
    "servers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("name", String(255), nullable=False),
    Column("project_id", String(32), nullable=False, index=True),
    Column("user_id", String(32), nullable=False),
    Column("reservation_id", String(32), nullable=False),
    Column("launch_index", Integer, nullable=False, default=0),
    Column("flavor", JSON, nullable=False),
    Column("image", JSON),
    Column("image_properties", JSON, nullable=False, default=dict),
    Column("metadata", JSON, nullable=False, default=dict),
    Column("tags", JSON, nullable=False, default=list),
    Column("scheduler_hints", JSON, nullable=False, default=dict),
    Column("description", Text),
    Column("hostname", String(255)),
    Column("user_data", Text),
    Column("key_name", String(255)),
    Column("config_drive", Boolean, nullable=False, default=True),
    Column("disk_config", String(8), nullable=False, default="MANUAL"),
    Column("availability_zone", String(255)),
    Column("pinned_zone", String(255)),
    Column("access_ipv4", String(64), nullable=False, default=""),
    Column("access_ipv6", String(64), nullable=False, default=""),
    Column("locked", Boolean, nullable=False, default=False),
    Column("locked_reason", Text),
    Column("forced_host", String(255)),
    # where it runs, and on whose word
    Column("host", String(255), index=True),
    Column("root_disk", String(16)),
    Column("epoch", Integer, nullable=False, default=0),
    Column("order_number", Integer, nullable=False, default=0),
    Column("host_number", Integer, nullable=False, default=0),
    Column("power_state", String(16), nullable=False, default="unknown"),
    Column("fault", JSON),
    Column("doubted_at", Float),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("launched_at", Float),
    Column("terminated_at", Float),
    Column("deleted_at", Float, index=True),
)
"""`flavor` and `image` are snapshots, so a flavor or image that is deleted later takes nothing from a server.
`host_number` is that of the newest order sent to the host where the server belongs: an older heartbeat is stale.
`doubted_at`: since then this database does not know where the server runs, and nothing is ordered for it."""

sightings = Table(
    "sightings",
    metadata,
    Column("server_id", String(36), primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("granted", Integer, nullable=False),
    Column("power_state", String(16), nullable=False),
    Column("present", Boolean, nullable=False),
    Column("first_seen_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Index("ix_sightings_host", "host"),
)
"""What hosts say of servers that this database places elsewhere, does not know, or doubts. Empty, but after a restore.
`present` is false where a host has nothing of a server that it ought to have."""

# --- migrations and their journal -----------------------------------------------------------------

migrations = Table(
    "migrations",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("server_id", String(36), ForeignKey("servers.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("action", String(16)),
    Column("project_id", String(32), nullable=False),
    Column("user_id", String(32), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("segments", JSON, nullable=False),
    Column("segment", Integer, nullable=False, default=0),
    Column("attempt", Integer, nullable=False, default=1),
    Column("revision", Integer, nullable=False, default=0),
    Column("source", String(255)),
    Column("target", String(255)),
    Column("forced_host", String(255)),
    Column("targets", JSON),
    Column("tried", JSON, nullable=False, default=list),
    Column("refusals", JSON, nullable=False, default=list),
    Column("old_flavor", JSON, nullable=False),
    Column("new_flavor", JSON, nullable=False),
    Column("was_running", Boolean, nullable=False),
    Column("steering", JSON),
    Column("cancelled", Boolean, nullable=False, default=False),
    Column("held", Boolean, nullable=False, default=False),
    Column("window_open", Boolean, nullable=False, default=False),
    Column("window_closes_at", Float),
    Column("verdict", String(16)),
    Column("fence", String(255)),
    Column("outcome", String(16)),
    Column("reason", Text),
    Column("open", Boolean, nullable=False, default=True),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("finished_at", Float),
    Index("uq_migrations_one_open", "server_id", unique=True, sqlite_where=text("open"), postgresql_where=text("open")),
    Index("ix_migrations_open", "open"),
    sqlite_autoincrement=True,
)
"""One durable piece of work on one server. `segments` is a list of {protocol, version, request_id}; `segment` is the
current one's index. `targets` is the scheduler's list, `fence` the host whose proof is missing. `held`: its server is
doubted, so it is not driven on."""

journal = Table(
    "journal",
    metadata,
    Column("migration_id", Integer, ForeignKey("migrations.id"), primary_key=True),
    Column("segment", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("step", String(32), primary_key=True),
    Column("host", String(255)),
    Column("mark", String(16), nullable=False),
    Column("number", Integer, nullable=False, default=0),
    Column("tries", Integer, nullable=False, default=0),
    Column("undo_tries", Integer, nullable=False, default=0),
    Column("facts", JSON, nullable=False, default=dict),
    Column("undo_facts", JSON, nullable=False, default=dict),
    Column("reason", Text, nullable=False, default=""),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("heard_at", Float),
    Column("asked_at", Float),
    Column("outstanding", JSON),
    Index("ix_journal_mark", "mark"),
)
"""`outstanding` is the order that is out, whole, so that it can be asked about or sent again as it was."""

debts = Table(
    "debts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("host", String(255), nullable=False, index=True),
    Column("server_id", String(36), nullable=False),
    Column("migration_id", Integer, nullable=False),
    Column("attempt", String(32), nullable=False),
    Column("step", String(32), nullable=False),
    Column("verb", String(8), nullable=False),
    Column("order", JSON, nullable=False),
    Column("number", Integer, nullable=False, default=0),
    Column("sent_at", Float),
    Column("created_at", Float, nullable=False),
    Column("paid_at", Float),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("queue", String(255), nullable=False),
    Column("type", String(32), nullable=False),
    Column("body", JSON, nullable=False),
    Column("due_at", Float, nullable=False),
    sqlite_autoincrement=True,
)
"""`due_at` is from when on any process may publish it: its writer, or the sweep that has taken it, comes first."""

actions = Table(
    "actions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String(64), nullable=False),
    Column("server_id", String(36), nullable=False, index=True),
    Column("action", String(64), nullable=False),
    Column("user_id", String(32), nullable=False),
    Column("project_id", String(32), nullable=False),
    Column("migration_id", Integer),
    Column("segment", Integer),
    Column("message", Text),
    Column("details", Text),
    Column("started_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)
"""What a user asked of a server. Its events are the journal's rows of (migration_id, segment)."""
