//! `mica network`: bridges that connect jobs.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mica_agent::{Network, NetworkName, NewNetwork};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Advise as _;
use crate::output;

/// Look after bridge networks
///
/// Jobs on one network reach each other, by address and by name (the job's, its machine's, its id, aliases); jobs on
/// different ones do not. They reach the outside by the host's address; from outside, published ports reach them.
///
/// Needs root and the program nft. While jobs run, a network is an interface and an nftables table, both called
/// mica-ID. If the host did not forward packets between its interfaces, it does from then on (net.ipv4.ip_forward);
/// a job's start says so.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a network
    Create {
        /// Its name
        name: NetworkName,
        /// Its addresses; twice, for IPv4 and IPv6 [default: the first free one of 10.90.0.0/24, 10.90.1.0/24, …]
        #[arg(long, value_name = "CIDR")]
        subnet: Vec<IpNet>,
        /// With IPv6, too [default subnet: one of fd00::/8, chosen by chance]
        #[arg(long)]
        ipv6: bool,
        /// The host's own address on it [default: the first one]
        #[arg(long, value_name = "IP")]
        gateway: Option<Ipv4Addr>,
        /// Jobs reach each other, and nothing outside
        #[arg(long)]
        internal: bool,
        /// Its kind
        #[arg(short, long, value_parser = ["bridge"], default_value = "bridge")]
        driver: String,
    },
    /// List networks
    #[command(alias = "list")]
    Ls {
        /// Names only
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
    },
    /// Show networks, and which jobs are on them
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<NetworkName>,
    },
    /// Remove networks that no job is on
    #[command(alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<NetworkName>,
    },
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!("bridge networks need root"))
            .hint("`mica run --network private` connects a job without it");
    }
    let state = context.jobs()?;
    let networks = state.networks();
    match &args.verb {
        Verb::Create { name, subnet, ipv6, gateway, internal, driver: _ } => {
            let (subnet, subnet6) = by_family(subnet)?;
            let (gateway, internal, ipv6) = (*gateway, *internal, *ipv6);
            let wanted = NewNetwork { subnet, gateway, ipv6, subnet6, internal };
            networks.create(name, &wanted, &mica_agent::routed())?;
            output::lines([name.as_str()])?;
        }
        Verb::Ls { quiet: true, .. } => {
            output::lines(networks.list()?.iter().map(|network| network.name.as_str()))?;
        }
        Verb::Ls { json: true, .. } => {
            output::json(&networks.list()?.iter().map(summary).collect::<Vec<_>>())?;
        }
        Verb::Ls { .. } => {
            let mut rows: Vec<[String; 5]> = Vec::new();
            for network in networks.list()? {
                let jobs = networks.members(&network)?.len();
                let internal = if network.config.internal { "yes" } else { "" };
                rows.push([
                    network.name.to_string(),
                    subnets(&network),
                    network.config.gateway.to_string(),
                    internal.to_owned(),
                    jobs.to_string(),
                ]);
            }
            output::table(["NAME", "SUBNET", "GATEWAY", "INTERNAL", "JOBS"], &rows)?;
        }
        Verb::Inspect { names } => {
            let mut found = Vec::new();
            for name in names {
                let network = networks.find(name)?;
                let mut value = summary(&network);
                value["members"] = serde_json::to_value(networks.members(&network)?)?;
                found.push(value);
            }
            output::json(&found)?;
        }
        Verb::Rm { names } => {
            for name in names {
                networks.remove(name)?;
                output::lines([name.as_str()])?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// At most one of each.
fn by_family(subnets: &[IpNet]) -> anyhow::Result<(Option<Ipv4Net>, Option<Ipv6Net>)> {
    let (mut four, mut six) = (None, None);
    for subnet in subnets {
        let before = match *subnet {
            IpNet::V4(subnet) => four.replace(subnet).map(IpNet::V4),
            IpNet::V6(subnet) => six.replace(subnet).map(IpNet::V6),
        };
        if let Some(before) = before {
            bail!("{before} and {subnet} are two subnets of one family");
        }
    }
    Ok((four, six))
}

fn subnets(network: &Network) -> String {
    let six = network.config.subnet6.map(|subnet| format!(", {subnet}"));
    format!("{}{}", network.config.subnet, six.unwrap_or_default())
}

fn summary(network: &Network) -> Value {
    json!({ "name": network.name, "driver": "bridge", "config": network.config })
}
