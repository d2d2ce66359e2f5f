//! A template's tree without constants to be computed: the compiler would compute them unbounded, and with operators that
//! are not Python's.

use minijinja::Value;
use minijinja::machinery::ast::{
    AutoEscape, BinOp, Block, Break, Call, CallArg, CallBlock, Compare, CompareOp, Const, Continue,
    Do, EmitExpr, EmitRaw, Expr, Extends, Filter, FilterBlock, ForLoop, FromImport, GetAttr,
    GetItem, IfCond, IfExpr, Import, Include, List, Macro, Map, Set, SetBlock, Slice, Spanned,
    Stmt, Template, Test, UnaryOp, UnaryOpKind, Var, WithBlock,
};

fn respan<T, U>(node: &Spanned<T>, make: impl FnOnce(&T) -> U) -> Spanned<U> {
    Spanned::new(make(node), node.span())
}

fn statements<'a>(list: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    list.iter().map(statement).collect()
}

/// The same statement, none of whose operators has constants alone.
pub fn statement<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(node) => Stmt::Template(respan(node, |node| Template {
            children: statements(&node.children),
        })),
        Stmt::EmitExpr(node) => Stmt::EmitExpr(respan(node, |node| EmitExpr {
            expr: expression(&node.expr),
        })),
        Stmt::EmitRaw(node) => Stmt::EmitRaw(respan(node, |node| EmitRaw { raw: node.raw })),
        Stmt::ForLoop(node) => Stmt::ForLoop(respan(node, |node| ForLoop {
            target: expression(&node.target),
            iter: expression(&node.iter),
            filter_expr: node.filter_expr.as_ref().map(expression),
            recursive: node.recursive,
            body: statements(&node.body),
            else_body: statements(&node.else_body),
        })),
        Stmt::IfCond(node) => Stmt::IfCond(respan(node, |node| IfCond {
            expr: expression(&node.expr),
            true_body: statements(&node.true_body),
            false_body: statements(&node.false_body),
        })),
        Stmt::WithBlock(node) => Stmt::WithBlock(respan(node, |node| WithBlock {
            assignments: node
                .assignments
                .iter()
                .map(|(target, value)| (expression(target), expression(value)))
                .collect(),
            body: statements(&node.body),
        })),
        Stmt::Set(node) => Stmt::Set(respan(node, |node| Set {
            target: expression(&node.target),
            expr: expression(&node.expr),
        })),
        Stmt::SetBlock(node) => Stmt::SetBlock(respan(node, |node| SetBlock {
            target: expression(&node.target),
            filter: node.filter.as_ref().map(expression),
            body: statements(&node.body),
        })),
        Stmt::AutoEscape(node) => Stmt::AutoEscape(respan(node, |node| AutoEscape {
            enabled: expression(&node.enabled),
            body: statements(&node.body),
        })),
        Stmt::FilterBlock(node) => Stmt::FilterBlock(respan(node, |node| FilterBlock {
            filter: expression(&node.filter),
            body: statements(&node.body),
        })),
        Stmt::Block(node) => Stmt::Block(respan(node, |node| Block {
            name: node.name,
            required: node.required,
            body: statements(&node.body),
        })),
        Stmt::Import(node) => Stmt::Import(respan(node, |node| Import {
            expr: expression(&node.expr),
            name: expression(&node.name),
        })),
        Stmt::FromImport(node) => Stmt::FromImport(respan(node, |node| FromImport {
            expr: expression(&node.expr),
            names: node
                .names
                .iter()
                .map(|(name, alias)| (expression(name), alias.as_ref().map(expression)))
                .collect(),
        })),
        Stmt::Extends(node) => Stmt::Extends(respan(node, |node| Extends {
            name: expression(&node.name),
        })),
        Stmt::Include(node) => Stmt::Include(respan(node, |node| Include {
            name: expression(&node.name),
            ignore_missing: node.ignore_missing,
        })),
        Stmt::Macro(node) => Stmt::Macro(respan(node, macro_of)),
        Stmt::CallBlock(node) => Stmt::CallBlock(respan(node, |node| CallBlock {
            call: respan(&node.call, call),
            macro_decl: respan(&node.macro_decl, macro_of),
        })),
        Stmt::Continue(node) => Stmt::Continue(respan(node, |_| Continue)),
        Stmt::Break(node) => Stmt::Break(respan(node, |_| Break)),
        Stmt::Do(node) => Stmt::Do(respan(node, |node| Do {
            call: respan(&node.call, call),
        })),
    }
}

fn macro_of<'a>(node: &Macro<'a>) -> Macro<'a> {
    Macro {
        name: node.name,
        args: expressions(&node.args),
        defaults: expressions(&node.defaults),
        body: statements(&node.body),
    }
}

fn call<'a>(node: &Call<'a>) -> Call<'a> {
    Call {
        expr: expression(&node.expr),
        args: arguments(&node.args),
    }
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    let argument = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(expr) => CallArg::Pos(expression(expr)),
        CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, expression(expr)),
        CallArg::PosSplat(expr) => CallArg::PosSplat(expression(expr)),
        CallArg::KwargSplat(expr) => CallArg::KwargSplat(expression(expr)),
    };
    args.iter().map(argument).collect()
}

fn expressions<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expression).collect()
}

fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Var(node) => Expr::Var(respan(node, |node| Var { id: node.id })),
        Expr::Const(node) => Expr::Const(respan(node, |node| Const {
            value: node.value.clone(),
        })),
        Expr::Slice(node) => Expr::Slice(respan(node, |node| Slice {
            expr: expression(&node.expr),
            start: node.start.as_ref().map(expression),
            stop: node.stop.as_ref().map(expression),
            step: node.step.as_ref().map(expression),
        })),
        Expr::UnaryOp(node) => Expr::UnaryOp(respan(node, |node| UnaryOp {
            op: match node.op {
                UnaryOpKind::Not => UnaryOpKind::Not,
                UnaryOpKind::Neg => UnaryOpKind::Neg,
            },
            expr: expression(&node.expr),
        })),
        Expr::BinOp(node) => Expr::BinOp(respan(node, |node| {
            let (left, right) = (expression(&node.left), expression(&node.right));
            let constant = is_constant(&left) && is_constant(&right);
            BinOp {
                op: node.op,
                left: if constant { hidden(left) } else { left },
                right,
            }
        })),
        Expr::Compare(node) => Expr::Compare(respan(node, |node| Compare {
            expr: hidden(expression(&node.expr)),
            ops: node
                .ops
                .iter()
                .map(|op| CompareOp {
                    op: op.op,
                    expr: expression(&op.expr),
                })
                .collect(),
        })),
        Expr::IfExpr(node) => Expr::IfExpr(respan(node, |node| IfExpr {
            test_expr: expression(&node.test_expr),
            true_expr: expression(&node.true_expr),
            false_expr: node.false_expr.as_ref().map(expression),
        })),
        Expr::Filter(node) => Expr::Filter(respan(node, |node| Filter {
            name: node.name,
            expr: node.expr.as_ref().map(expression),
            args: arguments(&node.args),
        })),
        Expr::Test(node) => Expr::Test(respan(node, |node| Test {
            name: node.name,
            expr: expression(&node.expr),
            args: arguments(&node.args),
        })),
        Expr::GetAttr(node) => Expr::GetAttr(respan(node, |node| GetAttr {
            expr: expression(&node.expr),
            name: node.name,
        })),
        Expr::GetItem(node) => Expr::GetItem(respan(node, |node| GetItem {
            expr: expression(&node.expr),
            subscript_expr: expression(&node.subscript_expr),
        })),
        Expr::Call(node) => Expr::Call(respan(node, call)),
        Expr::List(node) => Expr::List(respan(node, |node| List {
            items: expressions(&node.items),
        })),
        Expr::Map(node) => Expr::Map(respan(node, |node| Map {
            keys: expressions(&node.keys),
            values: expressions(&node.values),
        })),
    }
}

/// Whether the compiler could compute the expression, which holds no operator that it could.
fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Const(_) | Expr::List(_) | Expr::Map(_) => true,
        Expr::UnaryOp(node) => is_constant(&node.expr),
        _ => false,
    }
}

/// The expression as one that the compiler does not take for a constant.
fn hidden(expr: Expr<'_>) -> Expr<'_> {
    let span = expr.span();
    let always = Value::from(true);
    Expr::IfExpr(Spanned::new(
        IfExpr {
            test_expr: Expr::Const(Spanned::new(Const { value: always }, span)),
            true_expr: expr,
            false_expr: None,
        },
        span,
    ))
}
