//! Calls of functions and aggregates.

use sqlparser::ast::{self, DuplicateTreatment, FunctionArg, FunctionArgExpr, FunctionArguments};

use super::refusal::{cut, misplaced_aggregate, not_known, refuse, unsupported};
use super::value::{common, parsed_name};
use super::{Read, Reader, Typed, folded, typed};
use crate::admin::chatter;
use crate::admin::query::aggregate::{Aggregate, Function};
use crate::admin::query::catalog;
use crate::admin::query::expr::{self, Asked, Expr};
use crate::admin::table::{Cell, Kind};
use crate::wire::reply::{Report, SqlState};

impl Reader {
    pub(super) fn function(&mut self, function: &ast::Function, whole: &ast::Expr) -> Read<Typed> {
        let parts: Vec<_> = function
            .name
            .0
            .iter()
            .filter_map(|part| part.as_ident())
            .map(folded)
            .collect();
        let name = match parts.as_slice() {
            [name] => name.as_str(),
            [schema, name] if schema == "pg_catalog" => name.as_str(),
            _ => return Err(not_known(whole)),
        };
        let refused = [
            (function.over.is_some(), "window functions"),
            (function.filter.is_some(), "FILTER"),
            (!function.within_group.is_empty(), "WITHIN GROUP"),
        ];
        refuse(&refused)?;
        let list = match &function.args {
            // Some names of columns are functions to SQL.
            FunctionArguments::None if self.column(name).is_ok() => return self.column(name),
            FunctionArguments::None => &[],
            FunctionArguments::List(list) => {
                refuse(&[(
                    !list.clauses.is_empty(),
                    "clauses in a function's arguments",
                )])?;
                list.args.as_slice()
            }
            FunctionArguments::Subquery(_) => return Err(unsupported("queries in queries")),
        };
        if let Some(found) = Function::named(name) {
            let is_distinct = matches!(
                &function.args,
                FunctionArguments::List(list)
                    if list.duplicate_treatment == Some(DuplicateTreatment::Distinct)
            );
            return self.aggregate(found, list, is_distinct, whole);
        }
        if name == "array_length"
            && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(of)), _] = list
            && let Some(parts) = parsed_name(of)
        {
            return Ok(typed(Expr::Constant(parts.len().into()), Kind::Int4));
        }
        let mut arguments = Vec::with_capacity(list.len());
        for argument in list {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) = argument else {
                return Err(not_known(whole));
            };
            arguments.push(self.expr(argument)?);
        }
        self.call(name, arguments, whole)
    }

    fn call(&mut self, name: &str, arguments: Vec<Typed>, whole: &ast::Expr) -> Read<Typed> {
        let constant = |text: String| Ok(typed(Expr::Constant(text.into()), Kind::Text));
        let asked = |asked, kind| Ok(typed(Expr::Asked(asked), kind));
        match (name, arguments.as_slice()) {
            ("version", []) => constant(chatter::version()),
            ("current_schema", []) => constant(catalog::SCHEMA.to_owned()),
            ("current_database" | "current_catalog", []) => asked(Asked::Database, Kind::Text),
            ("current_user" | "session_user" | "user" | "current_role", []) => {
                asked(Asked::User, Kind::Text)
            }
            ("pg_backend_pid", []) => asked(Asked::Pid, Kind::Int4),
            ("now" | "current_timestamp" | "clock_timestamp", []) => {
                asked(Asked::Now, Kind::Instant)
            }
            ("pg_is_in_recovery", []) => Ok(typed(Expr::Constant(Cell::Bool(false)), Kind::Bool)),
            ("pg_advisory_unlock_all", []) => constant(String::new()),
            ("current_setting", [name] | [name, _]) => {
                let Expr::Constant(Cell::Text(text)) = &name.expr else {
                    return Err(not_known(whole));
                };
                match chatter::setting(text) {
                    Some(value) => constant(value),
                    None if arguments.len() == 2 => {
                        Ok(typed(Expr::Constant(Cell::Null), Kind::Text))
                    }
                    None => Err(chatter::no_setting(text)),
                }
            }
            ("set_config", [_, value, _]) => self.as_kind(value.clone(), Kind::Text),
            ("lower" | "upper" | "length" | "char_length" | "quote_ident", [value]) => {
                let value = Box::new(self.as_kind(value.clone(), Kind::Text)?.expr);
                let (of, kind) = match name {
                    "lower" => (expr::Function::Lower, Kind::Text),
                    "upper" => (expr::Function::Upper, Kind::Text),
                    "quote_ident" => (expr::Function::QuoteIdent, Kind::Text),
                    _ => (expr::Function::Length, Kind::Int4),
                };
                Ok(typed(Expr::Of(of, value), kind))
            }
            ("coalesce", [_, ..]) => {
                let kinds = arguments.iter().map(|value| value.kind);
                let kind = common(kinds).unwrap_or(Kind::Text);
                let values = arguments.into_iter().map(|value| self.as_kind(value, kind));
                let exprs = values.map(|value| value.map(|value| value.expr));
                Ok(typed(Expr::Coalesce(exprs.collect::<Read<_>>()?), kind))
            }
            _ => Err(Report::new(
                SqlState(*b"42883"),
                format!("the console has no function {}", cut(&whole.to_string())),
            )),
        }
    }

    fn aggregate(
        &mut self,
        function: Function,
        list: &[FunctionArg],
        is_distinct: bool,
        whole: &ast::Expr,
    ) -> Read<Typed> {
        // There is none within another, and none in WHERE.
        let Some(mut aggregates) = self.aggregates.take() else {
            return Err(misplaced_aggregate());
        };
        let of = match list {
            [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] if function == Function::Count => {
                None
            }
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))] => Some(self.expr(expr)?),
            _ => return Err(not_known(whole)),
        };
        let of_kind = of.as_ref().and_then(|of| of.kind).unwrap_or(Kind::Text);
        let kind = function.kind(of_kind).ok_or_else(|| {
            let words = format!("{} of type {}", cut(&whole.to_string()), of_kind.name());
            Report::new(SqlState(*b"42883"), format!("cannot compute {words}"))
        })?;
        let aggregate = Aggregate {
            function,
            of: of.map(|of| of.expr),
            is_distinct,
        };
        // The same may be in the list of outputs, in HAVING and in ORDER BY.
        let place = aggregates.iter().position(|known| *known == aggregate);
        let place = place.unwrap_or_else(|| {
            aggregates.push(aggregate);
            aggregates.len() - 1
        });
        let expr = Expr::Aggregate(place);
        self.aggregates = Some(aggregates);
        Ok(typed(expr, kind))
    }
}
