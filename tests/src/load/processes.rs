//! The CPU time and memory of the server's and Postgres' processes. They are known only on Linux.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use rustix::param::clock_ticks_per_second;

/// The processes that are measured.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// The servers.
    pub servers: Vec<u32>,
    /// The postmaster of Postgres, the parent of its other processes.
    pub postgres: Option<u32>,
}

/// What they had used at some time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU seconds of the servers.
    pub server: Option<f64>,
    /// CPU seconds of Postgres.
    pub postgres: Option<f64>,
    /// CPU seconds of the load generator.
    pub client: Option<f64>,
    /// The resident memory of the servers, in bytes.
    pub server_memory: Option<u64>,
}

impl Measured {
    /// The processes from the options. The others are found: the servers by the addresses that they listen on, and Postgres
    /// as their child or as the only one on this computer.
    #[must_use]
    pub fn find(servers: &[u32], postgres: Option<u32>, addresses: &[SocketAddr]) -> Self {
        let processes = Process::all();
        let servers = match servers {
            [] => addresses.iter().filter_map(|address| listener(*address)).collect(),
            given => given.to_vec(),
        };
        let postgres = postgres.or_else(|| private_postgres(&processes, &servers));
        Self { servers, postgres }
    }

    /// What they have used so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let processes = Process::all();
        let servers: Vec<&Process> = self.servers.iter().filter_map(|id| processes.get(id)).collect();
        let complete = servers.len() == self.servers.len() && !servers.is_empty();
        let postgres = self.postgres.and_then(|first| {
            let children = processes.values().filter(|process| process.parent == first);
            // The times of a process include those of its children that have ended.
            let first = processes.get(&first)?;
            Some(first.cpu + first.cpu_of_ended_children + children.map(|process| process.cpu).sum::<f64>())
        });
        Usage {
            server: complete.then(|| servers.iter().map(|process| process.cpu).sum()),
            postgres,
            client: processes.get(&std::process::id()).map(|process| process.cpu),
            server_memory: complete.then(|| self.servers.iter().filter_map(|id| resident(*id)).sum()),
        }
    }
}

impl Usage {
    /// What was used since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let difference = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        Self {
            server: difference(self.server, before.server),
            postgres: difference(self.postgres, before.postgres),
            client: difference(self.client, before.client),
            server_memory: self.server_memory,
        }
    }
}

#[derive(Debug)]
struct Process {
    name: String,
    parent: u32,
    cpu: f64,
    cpu_of_ended_children: f64,
}

impl Process {
    fn all() -> BTreeMap<u32, Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.parse().ok()?;
                // Skips a process that has ended since.
                Some((id, Self::read(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
            })
            .collect()
    }

    /// Reads `/proc/PID/stat` (proc_pid_stat(5)). The name is in parentheses, and may contain any character.
    fn read(stat: &str) -> Option<Self> {
        let (start, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let seconds = |from: usize| {
            let ticks = fields
                .get(from..from + 2)?
                .iter()
                .map(|field| field.parse::<f64>().ok());
            Some(ticks.sum::<Option<f64>>()? / f64::from(u32::try_from(clock_ticks_per_second()).ok()?))
        };
        Some(Self {
            name: start.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            cpu: seconds(11)?,
            cpu_of_ended_children: seconds(13)?,
        })
    }
}

fn private_postgres(processes: &BTreeMap<u32, Process>, servers: &[u32]) -> Option<u32> {
    let is_postgres = |id: &u32| processes.get(id).is_some_and(|process| process.name == "postgres");
    let is_below_a_server = |mut id: u32| {
        while let Some(process) = processes.get(&id) {
            if servers.contains(&id) {
                return true;
            }
            id = process.parent;
        }
        false
    };
    let firsts = processes.keys().copied();
    let firsts: Vec<u32> = firsts
        .filter(|id| is_postgres(id) && !processes.get(id).is_some_and(|process| is_postgres(&process.parent)))
        .collect();
    match firsts.iter().find(|id| is_below_a_server(**id)) {
        Some(own) => Some(*own),
        None => firsts.first().filter(|_| firsts.len() == 1).copied(),
    }
}

/// The process that listens on an address.
fn listener(address: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes = tables.iter().flat_map(|table| table.lines()).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        let listens = *fields.get(3)? == "0A" && u16::from_str_radix(port, 16).ok()? == address.port();
        listens.then(|| format!("socket:[{}]", fields.get(9).copied().unwrap_or_default()))
    });
    let inodes: Vec<String> = inodes.collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("fd"))))
        .find(|(_, descriptors)| {
            let descriptors = fs::read_dir(descriptors).into_iter().flatten().flatten();
            descriptors
                .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
                .any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
        })
        .map(|(id, _)| id)
}

/// The value `VmRSS` of `/proc/PID/status`, in bytes.
fn resident(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}
